def format_table(figures, metrics):
    return "\n".join(f"{n:20} {f.means[metrics[0]]:.4f}" for n, f in figures.items())
