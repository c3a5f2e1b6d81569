"""Ask a large language model to rank passages: the teacher.

One question travels through the files of this room like this:

1. `rankings`, the ways of asking. A way of asking is a generator: it turns the doc_ids of a query
   into `Question`s (order these, which is best, how relevant is this one), receives a reply to each
   and returns the doc_ids, best first. It knows neither texts nor models.
2. `ask`. `rank_all` runs the generators of all queries side by side. It looks up the texts of each
   question, gives them to the `Asker` of `questions`, which takes them through steps 3 to 7, and
   sends the reply to the generator; in the end it returns a `Run` and a `Tally` (`tally`).
   `rehearsal` counts the questions without asking them.
3. `prompts`. Passages are cut to a length, and a Jinja file (conf/prompts/) turns query and
   passages into chat messages.
4. `store`. The model's identity, the messages and the options make a key. If the SQLite file has an
   answer under it, steps 5 and 6 are skipped; a new answer is written as soon as it arrives.
5. `budget`. `Budget` lets the question pass, or stops the asking at a limit on requests, tokens or
   money. `Usage` and `Prices` count what the answers cost.
6. `backends`, the interface of the models: a `Backend` turns messages into a `Completion` (text,
   tokens, log-probabilities), or raises `ContextTooLong` (`questions` shortens the passages) or
   `QueryFailed` (the query ends, others go on). `openai_endpoint` asks a server, `local_chat` a
   model in this process, which `local_model` runs.
7. `answers`. The completion becomes the reply: an order, a choice or a score. Every text gives one;
   what had to be repaired is named and counted in the tally.

A `ScoringBackend` gets the query and the cut passages and returns their scores, so that there are
no messages to write and no answers to read: `YesNo` and `QueryLikelihood` in `local_scorers`,
which fill in their prompt themselves, and `cross_encoder`.

Two teachers are not asked at all: `history` replays the answers that rank_llm recorded, through a
way of asking and `answers`; `fused` merges several runs into one.

`queries` asks for something else, a search query for each passage, and takes steps 3 to 7 too.
`summary` shows a `Tally` as a table; `provenance` writes beside a file how it was made.

Read `rankings` first, then `ask` and `questions`.
"""
