"""Write a student as other software loads it: ``python -m rankdistillm.export``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from rankdistillm.cli import run_command
from rankdistillm.data.outputs import keep_apart, replacing_folder, writable_folder
from rankdistillm.errors import InputError
from rankdistillm.exports import check, onnx
from rankdistillm.exports.card import carry_card
from rankdistillm.exports.hub import check_repository, push
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats import LAYOUTS
from rankdistillm.options import EXPORT, EXPORTED, check_choice, check_options, files_read

FORMATS = (*LAYOUTS, "onnx")

log = logging.getLogger(__name__)


def export(config: DictConfig) -> None:
    """Write ``config.model.path`` to ``config.output`` in a format; see conf/export.yaml.

    The export is loaded again by the software it is for, if that is installed, and gets its final
    name only if it scores as the student does. A student's model card goes with it. With
    ``config.push`` the folder is uploaded to ``config.repo``.
    """
    if config.get("format", "") is None:
        raise InputError(f"format is not set; add format=NAME, one of {', '.join(FORMATS)}")
    check_options(config, EXPORT)
    check_choice("format", config.format, choices=FORMATS)
    if config.int8 and config.format != "onnx":
        raise InputError(f"int8=true goes with format=onnx, not with format={config.format}")
    if config.push:
        if config.repo is None:
            raise InputError("push=true needs a repository; add repo=USER/NAME")
        check_repository(config.repo)
    output, wanted = Path(config.output), f"output={config.output}"
    keep_apart([(wanted, output)], files_read(config, EXPORTED))
    _check_folder(output, wanted)
    # transformers' padded forward is what other software runs too.
    model = CrossEncoder.from_pretrained(config.model.path, packed=False, precision="fp32")
    if not model.has_head:
        raise InputError(
            f"model.path={config.model.path}: an encoder without a head (linear.weight), whose "
            "scores would be random; train it first (python -m rankdistillm.train)"
        )
    if model.template.max_length is not None:
        # Other software cuts a pair at this length, and some of it knows no other limit.
        model.tokenizer.model_max_length = model.template.max_length
    log.info("%s: writing it as %s", config.model.path, config.format)
    with replacing_folder(output) as folder:
        if config.format == "onnx":
            onnx.write(model, folder, int8=config.int8)
        else:
            model.save_pretrained(folder, layout=config.format)
        for line in check.compare(model, folder, config.format, int8=config.int8):
            log.info(line)
        carry_card(
            config.model.path,
            folder,
            layout=config.format,
            int8=config.int8,
            license=config.card.license,
        )
    log.info("wrote %s", output)
    if config.push:
        log.info("pushed to %s", push(output, config.repo, private=config.private))


def _check_folder(output: Path, wanted: str) -> None:
    """Raises `InputError` unless ``output`` can be made, or is an empty folder already."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{wanted}: a file; give the name of a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"{wanted}: not empty; give the name of a new folder")
    with writable_folder(output, wanted):
        pass


def main() -> None:
    """Entry point of ``python -m rankdistillm.export``."""
    run_command(export, "export")


if __name__ == "__main__":
    main()
