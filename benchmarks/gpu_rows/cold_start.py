"""A process of its own for the row `cold start`: prints the seconds from nothing to an image as JSON.

python benchmarks/gpu_rows/cold_start.py '{"folder": ..., "device": ..., "side": ..., "steps": ..., "backend": null}'
"""

import json
import sys
import time


def main() -> None:
    """Import, load, restore eagerly, compile, restore again."""
    settings = json.loads(sys.argv[1])
    marks = [("", time.perf_counter())]
    mark = lambda name: marks.append((name, time.perf_counter()))  # noqa: E731
    import torch

    from diffrestorer import DiffRestorerPipeline

    mark("import")
    pipe = DiffRestorerPipeline.from_pretrained(settings["folder"])
    pipe.set_progress_bar_config(disable=True)
    mark("load")
    pipe.prepare(settings["device"])
    mark("prepare")
    image = torch.rand(
        1, 3, settings["side"], settings["side"], generator=torch.Generator().manual_seed(0)
    )

    def restore() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(image, settings["steps"], generator, output_type="pt").images[0].float()

    eager = restore()
    mark("first_image")
    if settings["backend"]:
        plain = torch.compile
        torch.compile = lambda *args, **options: plain(
            *args, **{"backend": settings["backend"], **options}
        )
    pipe.prepare(settings["device"], compile=True)
    mark("")
    compiled = restore()
    mark("first_compiled_image")
    restore()
    mark("second_compiled_image")

    seconds = {
        name: end - start for (_, start), (name, end) in zip(marks, marks[1:], strict=False) if name
    }
    error = ((compiled - eager).norm() / (eager - eager.mean()).norm()).item()
    seconds["decibels"] = -20 * torch.tensor(max(error, 1e-9)).log10().item()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
