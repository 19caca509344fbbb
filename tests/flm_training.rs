//! FLM's shipped recipes, each for two steps of a tiny model on the fixture's pictures and real texts.

use crate::program::{ok, run};

/// The task of a model, a recipe, and the data that it trains on.
const RUNS: [(&str, &str, &str); 8] = [
    ("pretrain", "flm_pretrain", "{dataset:~coco,~split:~train}"),
    ("itm", "flm_pretrain_itm", "{dataset:~coco,~split:~train}"),
    ("ar", "flm_pretrain_ar", "{dataset:~coco,~split:~train}"),
    ("mlm", "flm_pretrain_mlm", "{dataset:~coco,~split:~train}"),
    (
        "caption",
        "flm_caption_coco",
        "{dataset:~coco,~split:~train}",
    ),
    (
        "irtr",
        "flm_retrieval_f30k",
        "{dataset:~f30k,~split:~train}",
    ),
    ("vqa", "flm_vqa", "{dataset:~vqa,~split:~train}"),
    ("nlvr2", "flm_nlvr2", "{dataset:~nlvr2,~split:~train}"),
];

#[test]
fn each_shipped_recipe_of_flm_trains_on_batches_of_short_texts() {
    for (task, recipe, data) in RUNS {
        let folder = tempfile::tempdir().expect("a folder");
        let answers = if task == "vqa" { "--answers 10" } else { "" };
        let vocabulary = if task == "caption" { 50267 } else { 50265 };
        ok(run(
            &format!(
                "-q synth --family flm --task {task} {answers} --blocks 2 --width 64 --text-blocks 2 \
                 --text-width 64 --cross-blocks 2 --image-size 32 --patch-size 8 --vocabulary {vocabulary} \
                 {{}}/start.safetensors"
            ),
            &folder,
        ));
        let said = run(
            &format!(
                "-q pretrain docs/recipes/train/{recipe}.yaml --out {{}}/run \
                 --set init.checkpoint={{}}/start.safetensors --set data.folder=fixtures/arrow \
                 --set data.tokenizer=fixtures/text/roberta --set data.train=[{data}] \
                 --set augmentation=square --set model.image_size=32 --set batch_size=4 \
                 --set per_device_batch=2 --set length={{steps:~2}} --set precision=f32 \
                 --set validation=null"
            ),
            &folder,
        );
        assert_eq!(said.code, Some(0), "{recipe}: {}", said.stderr);
        let trained = folder.path().join("run/model.safetensors");
        assert!(trained.exists(), "{recipe}");
    }
}
