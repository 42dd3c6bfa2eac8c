"""Words and pictures of a local POPE task for lmms-eval, whose data are questions about the toy's scenes."""


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    said, gold = results[0].lower().strip(), doc["answer"].lower()
    return {"right": {"question_id": doc["question_id"], "score": float(said == gold)}}


def mean(results):
    return sum(result["score"] for result in results) / len(results)
