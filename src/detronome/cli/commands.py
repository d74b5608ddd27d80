"""The commands, in groups, each with examples; a command's module is imported when it is used."""

from __future__ import annotations

from cyclopts import Group

from detronome.cli.help import HelpPage, RootApp, epilogue
from detronome.version import __version__

__all__ = ["app"]

_BEGIN, _DATA, _TRAIN, _MEASURE, _DEPLOY, _ENVIRONMENT, _OPTIONS = (
    Group(name, sort_key=place)
    for place, name in enumerate(("Begin", "Data", "Train", "Evaluate", "Deploy", "Environment", "Options"))
)

app = RootApp(
    name="detronome",
    help="Train, evaluate and deploy detection transformers (DETR) on COCO-format data.",
    help_format="plaintext",
    help_formatter=HelpPage(),
    help_epilogue=epilogue(
        ("See it work: trains from scratch in minutes, on a CPU", "detronome demo"),
        ("Train on your data, then measure", "detronome train DATA --model nano"),
        ("", "detronome eval runs/nano DATA --split test"),
        ("What a command can do, with examples", "detronome train --help"),
        notes="Exit codes: 0 done, 1 failed as the message says, 2 asked for what cannot be, 130 interrupted. All "
        "commands take --json.",
    ),
    group_parameters=Group("Options", sort_key=1),
    version=__version__,
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
for _flag in ("--help", "--version"):
    app[_flag].group = (_OPTIONS,)

app.command(
    "detronome.cli.demo:demo",
    group=_BEGIN,
    sort_key=1,
    help="Train, evaluate and predict on embedded data, in minutes on a CPU.",
    help_epilogue=epilogue(
        ("Everything; then open detronome-demo/run/report.html", "detronome demo"),
        ("Only see that everything works", "detronome demo --quick --out quick-demo"),
    ),
)
app.command(
    "detronome.cli.models:models",
    group=_BEGIN,
    sort_key=2,
    help="List the presets: size, work, published accuracy, weights.",
    help_epilogue=epilogue(
        ("All presets", "detronome models"),
        ("Their names alone", "detronome models --json | jq -r '.models[].name'"),
    ),
)
app.command(
    "detronome.cli.data:app",
    name="data",
    group=_DATA,
    help="Download, check, convert, look at and prepare data sets.",
)
app.command(
    "detronome.cli.plan:plan",
    group=_TRAIN,
    sort_key=1,
    help="Predict memory, time and price of a run; no GPU needed.",
    help_epilogue=epilogue(
        ("Does it fit this machine, and how long does it take", "detronome plan DATA --model nano"),
        (
            "On a GPU that you think of renting, at so much an hour",
            "detronome plan DATA --model detr-r50 --gpu 'RTX 4090' --price 0.4",
        ),
        ("On eight of them, with other settings", "detronome plan DATA --gpu h200 --gpus 8 --set train.precision=bf16"),
        notes="Exit codes: 0 it fits, 1 it does not.",
    ),
)
app.command(
    "detronome.cli.train:train",
    group=_TRAIN,
    sort_key=2,
    help="Train on a data folder, or go on with a run.",
    help_epilogue=epilogue(
        ("Small and fast, from scratch", "detronome train DATA --model nano"),
        (
            "Fine-tune published weights with other settings",
            "detronome train DATA --model rtdetr-v2-s --epochs 24 --set optim.lr=1e-4",
        ),
        ("After Ctrl-C, SIGTERM or a crash", "detronome train --resume runs/nano"),
        ("One line for the first start and every requeue", "detronome train DATA --out RUN --if-exists resume"),
        notes="Ctrl-C, SIGTERM and SIGUSR1 save within a step and end with the line that goes on with the run; a "
        "second signal ends at once.\n\nExit codes: 0 the run has ended; 130, 143 or 138 interrupted by one of these "
        "signals; 75 a hang that was reported.",
    ),
)
app.command(
    "detronome.cli.watch:watch",
    group=_TRAIN,
    sort_key=3,
    help="Follow a run as it goes on, in the terminal or on a page.",
    help_epilogue=epilogue(
        ("The newest run in runs/", "detronome watch"),
        ("How it is doing now, for a script", "detronome watch runs/nano --once --json"),
        ("On a page, also for others", "detronome watch runs/nano --serve --host 0.0.0.0"),
        notes="Ends with the run, or with Ctrl-C; an interrupted run is followed further.\n\nExit codes of --once: 0 "
        "the run goes on or has ended, 3 it is silent, 4 it was interrupted. --json without --once prints a document "
        "a line, one for each change.",
    ),
)
app.command(
    "detronome.cli.profile:profile",
    group=_TRAIN,
    sort_key=4,
    help="Say what a step waits for, with proof, and what to change.",
    help_epilogue=epilogue(
        ("A run that has not begun", "detronome profile DATA --model nano"),
        ("One that is too slow", "detronome profile runs/nano"),
        ("With a trace of two steps for ui.perfetto.dev", "detronome profile DATA --model nano --trace trace.json"),
    ),
)
app.command(
    "detronome.cli.tune:tune",
    group=_TRAIN,
    sort_key=5,
    help="Find settings that make a run faster, each proven by measurement.",
    help_epilogue=epilogue(
        ("Try for ten minutes, then train with what was found", "detronome tune DATA --model nano --out tuned.toml"),
        ("", "detronome train DATA --model nano --config tuned.toml"),
        ("Also what changes numbers by more than rounding", "detronome tune DATA --allow-inexact --budget-minutes 30"),
    ),
)
app.command(
    "detronome.cli.search:search",
    group=_TRAIN,
    sort_key=6,
    help="Find settings that give a higher AP, trial after trial.",
    help_epilogue=epilogue(
        (
            "Twenty trials of the learning rate; those that fall behind end early",
            "detronome search DATA --model nano --space optim.lr=1e-4..1e-2:log --epochs 40 --out search",
        ),
        (
            "Two at a time, over a choice",
            "detronome search DATA --space 'model.num_queries=25|50|100' --epochs 10 --out search --jobs 2",
        ),
        notes="The same command goes on with a search that was interrupted.",
    ),
)
app.command(
    "detronome.cli.evaluate:evaluate",
    name="eval",
    group=_MEASURE,
    sort_key=1,
    help="Measure a checkpoint, or a results file of any tool.",
    help_epilogue=epilogue(
        ("A run, on a split that it has not seen", "detronome eval runs/nano DATA --split test"),
        ("The official weights on COCO, downloaded once", "detronome eval detr-r50 COCO"),
        ("Results of any tool", "detronome eval --detections results.json --annotations instances_val.json"),
        ("Confusion, curves, kinds of errors, worst images", "detronome eval runs/nano DATA --details details.json"),
    ),
)
app.command(
    "detronome.cli.predict:predict",
    group=_MEASURE,
    sort_key=2,
    help="Find objects in images and videos: pictures, COCO, YOLO, CSV.",
    help_epilogue=epilogue(
        ("Pictures with boxes, and a COCO results file", "detronome predict runs/nano photos/"),
        (
            "Published weights, a table, only some classes",
            "detronome predict detr-r50 photo.jpg --format csv --classes person dog",
        ),
        ("A large image in overlapping tiles", "detronome predict runs/nano huge.jpg --tile 640x640"),
        ("Each fifth frame of a video", "detronome predict runs/nano film.mp4 --every 5 --out film"),
    ),
)
app.command(
    "detronome.cli.report:report",
    group=_MEASURE,
    sort_key=3,
    help="Write the HTML page of a run, or compare several.",
    help_epilogue=epilogue(
        ("One run", "detronome report runs/nano"),
        ("Several, side by side", "detronome report runs/nano runs/nano-2 --out comparison.html"),
    ),
)
app.command(
    "detronome.cli.trim:trim",
    group=_DEPLOY,
    sort_key=1,
    help="Make a smaller, faster model of a trained one, without training.",
    help_epilogue=epilogue(
        ("What smaller models are worth; recommends one", "detronome trim runs/nano DATA"),
        ("Write one of them", "detronome trim runs/nano --decoder-layers 2 --queries 50 --out runs/small"),
        (
            "Measure some, draw them, train the chosen one for two epochs",
            "detronome trim runs/nano DATA --decoder-layers 1 2 3 --picture trim.png --out runs/small --fine-tune 2",
        ),
    ),
)
app.command(
    "detronome.cli.export:export",
    group=_DEPLOY,
    sort_key=2,
    help="Write an ONNX, OpenVINO, torch or TensorRT model, checked.",
    help_epilogue=epilogue(
        ("For ONNX Runtime, AP compared with PyTorch's", "detronome export runs/nano --to onnx --data DATA"),
        ("In 8 bits for OpenVINO", "detronome export runs/nano --to openvino --int8 --data DATA"),
        ("Published weights, to a file of your choice", "detronome export detr-r50 --to torch --out detr-r50.pt2"),
    ),
)
app.command(
    "detronome.cli.benchmark:benchmark",
    group=_DEPLOY,
    sort_key=3,
    help="Measure a model's forms side by side: time, memory, AP.",
    help_epilogue=epilogue(
        ("Every form that this machine can run", "detronome benchmark runs/nano DATA"),
        (
            "Two of them, beside a trimmed model",
            "detronome benchmark runs/nano DATA --forms pytorch,onnx --also runs/small",
        ),
        ("Time alone, on one thread", "detronome benchmark runs/nano DATA --images 0 --threads 1 --batch-sizes 1"),
    ),
)
app.command(
    "detronome.cli.serve:serve",
    group=_DEPLOY,
    sort_key=4,
    help="Answer over HTTP: find objects in images that are sent.",
    help_epilogue=epilogue(
        ("On this machine alone, with a page to try it", "detronome serve runs/nano"),
        ("Send an image", "curl --data-binary @photo.jpg http://127.0.0.1:8000/predict"),
        (
            "For others: an exported model, larger batches",
            "detronome serve exports/nano.onnx --host 0.0.0.0 --max-batch 16",
        ),
        notes="SIGTERM and Ctrl-C let what has begun finish, and end with exit code 0; a second one ends at once. "
        "--json prints where it serves, as soon as it does.",
    ),
)
app.command(
    "detronome.cli.doctor.command:doctor",
    group=_ENVIRONMENT,
    sort_key=1,
    help="Examine packages and machine, or explain an error.",
    help_epilogue=epilogue(
        ("What is wrong here, and the commands that repair it", "detronome doctor"),
        ("The cause of an error", "detronome doctor --explain 'DataLoader worker is killed by signal: Bus error'"),
        ("From a log", "detronome doctor --explain < train.log"),
        ("Newer releases, what holds them back, and security", "detronome doctor --updates"),
        notes="Exit codes: 0 all is well, 1 warnings, 2 failures; of --explain: 0 the cause is found, 1 it is not.",
    ),
)
app.command(
    "detronome.cli.completion:completion",
    group=_ENVIRONMENT,
    sort_key=2,
    help="Let the shell complete commands, options, models and settings.",
    help_epilogue=epilogue(
        ("For every shell that begins from now on", "detronome completion --install"),
        ("For this one alone", "source <(detronome completion bash)"),
    ),
)
