//! Residual networks from a merge to accuracy: what a merge says of batch norms, and statistics that are taken again.

use tempfile::TempDir;

use crate::class_folders::one_picture_each;
use crate::grams_between_checkpoints::{open, perturbed, values};
use crate::program::{ok, run};

const MODEL: &str = "fixtures/resnet/basic.safetensors";

#[test]
fn a_merge_of_batch_norms_says_what_to_do_and_recalibration_changes_statistics_alone() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "resnet", &["train"]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    perturbed(MODEL, &path("two.safetensors"), 3);
    // Another count of batches, as of a model that was fine-tuned for longer.
    let mut tensors = fixtures::tensors(folder.path().join("two.safetensors").as_path());
    for (key, raw) in &mut tensors {
        match key {
            key if key.ends_with("num_batches_tracked") => raw.bytes = 9i64.to_le_bytes().into(),
            key if key.ends_with("running_var") => {
                let values = raw.values().into_iter();
                raw.bytes = values
                    .flat_map(|v| (v.abs() as f32).to_le_bytes())
                    .collect();
            }
            _ => {}
        }
    }
    fixtures::write(folder.path().join("two.safetensors").as_path(), &tensors);
    let recipe = format!(
        "merge_method: linear\nmodels:\n- {{ model: {MODEL}, parameters: {{ weight: 1 }} }}\n\
         - {{ model: {}, parameters: {{ weight: 1 }} }}\n",
        path("two.safetensors")
    );
    std::fs::write(path("recipe.yaml"), recipe).expect("written");
    let said = ok(run(
        "merge {}/recipe.yaml --out {}/merged.safetensors",
        &folder,
    ));
    assert!(
        said.stderr.contains("vlmerge recalibrate"),
        "{}",
        said.stderr
    );
    let merged = fixtures::tensors(folder.path().join("merged.safetensors").as_path());
    assert_eq!(merged["bn1.num_batches_tracked"].integers(), [7]);
    ok(run(
        "-q recalibrate {}/merged.safetensors {}/out.safetensors --data {} --dataset toy --split train --batch-size 2",
        &folder,
    ));
    let out = fixtures::tensors(folder.path().join("out.safetensors").as_path());
    assert_eq!(merged.len(), out.len());
    for (key, tensor) in &merged {
        let is_statistic = key.ends_with("running_mean") || key.ends_with("running_var");
        assert_eq!(out[key].bytes == tensor.bytes, !is_statistic, "{key}");
    }
    let variances = values(&open(&path("out.safetensors")), "bn1.running_var");
    assert!(variances.iter().all(|value| *value > 0.0));
    // A second time, from its own statistics: the same, for none of them is used.
    ok(run(
        "-q recalibrate {}/out.safetensors {}/again.safetensors --data {} --dataset toy --split train --batch-size 2",
        &folder,
    ));
    let again = fixtures::tensors(folder.path().join("again.safetensors").as_path());
    assert_eq!(again, out);
    let line = "-q evaluate {}/out.safetensors --task image_classification --data {} --dataset toy --split train --json";
    ok(run(line, &folder));
}

#[test]
fn a_model_without_batch_norms_is_refused() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "resnet", &["train"]);
    let said = run(
        "-q recalibrate fixtures/vit/token {}/out.safetensors --data {} --dataset toy --split train",
        &folder,
    );
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("batch norms"), "{}", said.stderr);
}
