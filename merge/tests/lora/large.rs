//! Weights of more than one chunk, and what a plan says of their memory.

use fixtures::Raw;

use super::{Folder, noise, raw};

/// Sizes that leave no part of a chunk even.
const ODD: [usize; 2] = [331, 401];

/// A base of an oblong weight of more than one chunk, a vector and a small square, and two adapters.
pub(super) fn large() -> Folder {
    let names = ["m.layers.0.fc", "m.layers.1.fc"];
    let mut base: Vec<(String, Raw)> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let values = noise(index as u64, &ODD);
        base.push((format!("{name}.weight"), raw(&ODD, &values)));
    }
    base.push(("m.norm.weight".into(), raw(&[9], &noise(7, &[9]))));
    let base = base.iter().map(|(name, raw)| (name.as_str(), raw.clone()));
    let folder = Folder::new(base.collect());
    for (adapter, seed) in [("a", 10), ("b", 20)] {
        let mut tensors: Vec<(String, Raw)> = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let (a, b) = ([3, ODD[1]], [ODD[0], 3]);
            let seed = seed + 2 * index as u64;
            tensors.push((format!("{name}.lora_A.weight"), raw(&a, &noise(seed, &a))));
            tensors.push((
                format!("{name}.lora_B.weight"),
                raw(&b, &noise(seed + 1, &b)),
            ));
        }
        let tensors = tensors
            .iter()
            .map(|(name, raw)| (name.as_str(), raw.clone()));
        folder.adapter(adapter, r#""r": 3, "lora_alpha": 0.5"#, tensors.collect());
    }
    folder
}

#[test]
fn every_element_of_a_large_weight_is_the_exact_sum_rounded_a_few_times() {
    let folder = large();
    let merged = folder.with("a").expect("merges");
    let key = "m.layers.1.fc.weight";
    let (a, b) = (noise(12, &[3, ODD[1]]), noise(13, &[ODD[0], 3]));
    let base = noise(1, &ODD);
    for (index, found) in merged[key].values().into_iter().enumerate() {
        let (row, column) = (index / ODD[1], index % ODD[1]);
        let product = |k: usize| f64::from(b[row * 3 + k]) * f64::from(a[k * ODD[1] + column]);
        let expected = f64::from(base[index]) + (0..3).map(product).sum::<f64>() * 0.5 / 3.0;
        // Five roundings of numbers below 2.
        assert!(
            (found - expected).abs() < 5.0 * 2f64.powi(-24) * 2.0,
            "{index}"
        );
    }
}

#[test]
fn every_method_gives_the_bytes_that_merged_files_give() {
    let folder = large();
    for name in ["a", "b"] {
        let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{name}\n");
        folder
            .merge_to(&format!("merged_{name}"), &yaml)
            .expect("merges");
    }
    let (density, t) = ("density: 0.5", "t: 0.25");
    let (none, w75, w50) = ("", "weight: 0.75", "weight: 0.5");
    // The method, its base (`1` for the first model), what each model is given, and what both are.
    let methods = [
        ("task_arithmetic", "<base>", [w75, w50], none),
        ("ties", "<base>", [w75, w50], density),
        ("dare_linear", "<base>", [w75, w50], density),
        ("dare_ties", "<base>", [w75, w50], density),
        ("breadcrumbs", "<base>", [w75, w50], density),
        ("della", "<base>", [w75, w50], density),
        ("sce", "<base>", [none, none], none),
        ("model_stock", "<base>", [none, none], none),
        ("ram", "<base>", [none, none], none),
        ("linear", "", [w75, w50], none),
        ("karcher", "", [none, none], none),
        ("multislerp", "", [w75, w50], none),
        ("nuslerp", "", [w75, w50], none),
        ("slerp", "1", [none, none], t),
        ("nearswap", "1", [none, none], t),
        ("arcee_fusion", "1", [none, none], none),
    ];
    for (method, base, own, shared) in methods {
        let merge = |first: &str, second: &str| {
            let base = match base {
                "" => String::new(),
                "1" => format!("base_model: {first}\n"),
                base => format!("base_model: {base}\n"),
            };
            let yaml = format!(
                "merge_method: {method}\n{base}models:\n- {{model: {first}, parameters: {{{}}}}}\n- {{model: \
                 {second}, parameters: {{{}}}}}\nparameters: {{{shared}}}\nseed: 3\n",
                own[0], own[1]
            );
            let merged = folder.merge_to("merged", &yaml);
            merged.unwrap_or_else(|error| panic!("{method}: {error}"))
        };
        let from_adapters = merge("<base>+a", "<base>+b");
        assert!(
            from_adapters == merge("<merged_a>", "<merged_b>"),
            "{method}"
        );
        let name = "m.layers.0.fc.weight";
        assert!(
            from_adapters[name] != raw(&ODD, &noise(0, &ODD)),
            "{method}"
        );
    }
}

#[test]
fn a_plan_counts_the_factors_that_are_kept() {
    let folder = large();
    let peak = |model: &str| {
        let yaml = format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
        folder.plan(&yaml).expect("a plan").peak_bytes(2)
    };
    let factors = 2 * 4 * 3 * (ODD[0] + ODD[1]);
    assert_eq!(peak("<base>+a"), peak("<base>") + factors as u64);
}
