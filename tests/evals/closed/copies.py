"""Small made-up copies of benchmarks, in the layouts in which they are released."""

import csv
import io
import json

from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def picture(path, size=(40, 32), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def picture_bytes(colour="red"):
    written = io.BytesIO()
    Image.new("RGB", (24, 24), colour).save(written, "PNG")
    return written.getvalue()


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def mme(folder, tasks=("existence", "count"), pictures=3, nested=False):
    """Each picture has a yes question and then a no question."""
    for task in tasks:
        place = folder / "MME_Benchmark_release_version" / task
        for i in range(pictures):
            stem = f"{i:04d}"
            picture(place / ("images" if nested else "") / f"{stem}.jpg", colour=COLOURS[i])
            asked = place / ("questions_answers_YN" if nested else "")
            asked.mkdir(parents=True, exist_ok=True)
            (asked / f"{stem}.txt").write_text(
                f"Is there a cup{i} of {task}? Please answer yes or no.\tYes\n"
                f"Is there a cow{i} of {task}? Please answer yes or no.\tNo\n"
            )
    return folder


def mmvp(folder, answers=("(a)", "(b)", "(b)", "(a)")):
    rows = [
        (str(i), f"Is door {(i + 1) // 2} open or closed?", "(a) Open (b) Closed", answer)
        for i, answer in enumerate(answers, 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Index", "Question", "Options", "Correct Answer"), *rows])
    for i in range(1, len(answers) + 1):
        picture(folder / "MMVP Images" / f"{i}.jpg", colour=COLOURS[i % 6])
    return folder


def hallusionbench(folder):
    """One set of two figures with two questions each, and one question without a picture."""
    rows = []
    for figure in ("0", "1"):
        for question in ("0", "1"):
            label = "1" if figure == question else "0"
            rows.append(
                {
                    "category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "7",
                    "figure_id": figure, "question_id": question, "question": f"Is line {question} longer?",
                    "gt_answer": label, "filename": f"./hallusion_bench/VD/illusion/7_{figure}.png",
                }
            )  # fmt: skip
        picture(
            folder / "hallusion_bench" / "VD" / "illusion" / f"7_{figure}.png", colour=COLOURS[int(figure)]
        )
    picture(folder / "hallusion_bench" / "VS" / "chart" / "0_1.png", colour="blue")
    rows.append({**rows[0], "category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": "1",
                 "question": "Is it the tallest?", "filename": "./hallusion_bench/VS/chart/0_1.png"})  # fmt: skip
    rows.append({**rows[-1], "figure_id": "0", "visual_input": "0", "filename": None})
    dump(folder / "HallusionBench.json", rows)
    return folder


def naturalbench(folder, groups=2):
    """Groups of yes/no questions; the last is answered by a letter."""
    import pyarrow as arrow
    from pyarrow import parquet

    rows = []
    for i in range(groups):
        is_letter = i == groups - 1
        right, wrong = ("A", "B") if is_letter else ("Yes", "No")
        rows.append(
            {
                "Index": i,
                "Question_0": f"Is cup {i} full?", "Question_1": f"Is cup {i} empty?",
                "Image_0_Question_0": right, "Image_1_Question_0": wrong,
                "Image_0_Question_1": wrong, "Image_1_Question_1": right,
                "Question_Type": "multiple_choice" if is_letter else "yes_no",
                **{f"Image_{k}": {"bytes": picture_bytes(COLOURS[k]), "path": None} for k in (0, 1)},
            }
        )  # fmt: skip
    (folder / "data").mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "data" / "train-0.parquet", row_group_size=1)
    return folder


def dash_b(folder):
    dump(
        folder / "images" / "dash_benchmark_neg.json",
        {"set": {"kettle": ["1.jpg", "2.jpg"], "drum": ["1.jpg"]}},
    )
    dump(folder / "images" / "dash_benchmark_pos.json", {"set": {"kettle": ["9.jpg"]}})
    for i, name in enumerate(("neg/set/kettle/1", "neg/set/kettle/2", "neg/set/drum/1", "pos/set/kettle/9")):
        picture(folder / "images" / f"{name}.jpg", colour=COLOURS[i])
    return folder


AMBER_ASKED = (
    ("discriminative-hallucination", "no", 1),
    ("discriminative-hallucination", "no", 2),
    ("discriminative-attribute-state", "yes", 1),
    ("discriminative-attribute-number", "no", 1),
    ("discriminative-attribute-action", "yes", 2),
    ("discriminative-relation", "yes", 2),
    ("relation", "no", 2),
)


def amber(folder):
    """Two pictures to describe, with ids 1 and 2, and seven questions with ids from 3 on."""
    described = [
        {"id": 1, "type": "generative", "truth": ["child", "grass", "ship", "ship"], "hallu": ["sky", "dog"]},
        {"id": 2, "type": "generative", "truth": ["beach"], "hallu": ["sea", "cloud"]},
    ]
    asked = [{"id": i, "type": kind, "truth": truth} for i, (kind, truth, _) in enumerate(AMBER_ASKED, 3)]
    queries = [{"id": i, "image": f"AMBER_{i}.jpg", "query": "Describe this image."} for i in (1, 2)]
    queries += [
        {"id": i, "image": f"AMBER_{number}.jpg", "query": f"Is thing {i} in the image?"}
        for i, (_, _, number) in enumerate(AMBER_ASKED, 3)
    ]
    dump(folder / "data" / "annotations.json", described + asked)
    dump(folder / "data" / "query" / "query_all.json", queries)
    dump(
        folder / "data" / "relation.json",
        {
            "child": ["kid", "person", "boy"], "grass": ["ground"], "ship": ["boat"], "sky": [], "dog": [],
            "beach": ["sand", "ground"], "sea": ["water"], "cloud": [], "line": ["string"], "knife": [], "can": [],
        },
    )  # fmt: skip
    (folder / "data" / "safe_words.txt").write_text("line\nlight")
    for i in (1, 2):
        picture(folder / "image" / f"AMBER_{i}.jpg", colour=COLOURS[i])
    return folder
