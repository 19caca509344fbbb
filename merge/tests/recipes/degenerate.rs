//! Numbers that a formula has no answer to, or a wrong one: what the merge gives instead, or which error.

use std::collections::BTreeMap;

use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

use super::{Folder, first};

/// The tensor of most of these tests.
const LAYER: &str = "layers.0.mlp.fc.weight";

impl Folder {
    /// Models `m0`, `m1`, ... of a number and a vector of three elements, both filled with one value.
    fn numbers(values: &[f32]) -> Self {
        let folder = Self::new();
        for (index, &value) in values.iter().enumerate() {
            let tensors: [(&str, &[usize], f32); 2] =
                [("scale", &[], value), ("line.weight", &[3], value)];
            folder.model(&format!("m{index}"), &tensors);
        }
        folder
    }

    /// Models `a` and `b` of one layer, filled with 2 and 4.
    fn two_layers() -> Self {
        let folder = Self::new();
        for (name, value) in [("a", 2.0), ("b", 4.0)] {
            folder.model(name, &[(LAYER, &[2, 2], value)]);
        }
        folder
    }

    /// Writes one f64 tensor.
    fn doubles(&self, name: &str, key: &str, shape: &[usize], values: &[f64]) {
        let raw = Raw {
            dtype: Dtype::F64,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        fixture::write(&self.path(name), &BTreeMap::from([(key.to_owned(), raw)]));
    }
}

#[test]
fn numbers_of_both_signs_have_the_karcher_mean_of_the_formula() {
    // All u − c·m are 0: m stays on the side of most, and the norms are averaged. mergekit gives the same.
    for (values, wanted) in [
        (&[1.3, -0.7, 2.1][..], 4.1 / 3.0),
        (&[1.0, -1.0, 1.0], 1.0),
        (&[0.3, -0.2, -0.5], -1.0 / 3.0),
    ] {
        let folder = Folder::numbers(values);
        for parameters in ["{}", "{max_iter: 1000000, tol: 0}"] {
            let merged = folder.merge(&format!(
                "merge_method: karcher\nmodels: [<m0>, <m1>, <m2>]\nparameters: {parameters}"
            ));
            let merged = merged.expect("merges");
            for key in ["scale", "line.weight"] {
                let found = first(&merged, key);
                assert!((found - wanted).abs() < 1e-6, "{values:?}, {key}: {found}");
            }
        }
    }
    let said = Folder::numbers(&[1.0, 2.0]).fault(
        "merge_method: karcher\nmodels: [<m0>, <m1>]\nparameters: {max_iter: 1000000000, tol: 0}",
    );
    assert!(
        said.contains("`max_iter` must be a whole number from 1 to 1,000,000 (line 3"),
        "{said}"
    );
}

#[test]
fn two_numbers_that_cancel_on_the_sphere_have_their_weighted_mean() {
    // As mergekit in f32, whose |m| is 0: (−2.2501411 + 0.3863696) / 2.
    let merged = Folder::numbers(&[-2.2501411, 0.3863696])
        .merge("merge_method: multislerp\nmodels: [<m0>, <m1>]\nparameters: {weight: 0.5}");
    let found = first(&merged.expect("merges"), "scale");
    assert!((found + 0.931_885_75).abs() < 1e-6, "{found}");
    // Three and more numbers, too; vectors that cancel are an error.
    let folder = Folder::numbers(&[1.0, 2.0, -3.0, -4.0]);
    let yaml =
        "merge_method: multislerp\nmodels: [<m0>, <m1>, <m2>, <m3>]\nparameters: {weight: 1}";
    let said = folder.fault(yaml);
    assert!(
        said.contains("cannot merge `line.weight`: the inputs point away from each other"),
        "{said}"
    );
    for (index, value) in [1.0, 2.0, -3.0, -4.0].into_iter().enumerate() {
        folder.model(&format!("m{index}"), &[("scale", &[1], value)]);
    }
    let merged = folder.merge(yaml).expect("merges");
    assert!((first(&merged, "scale") + 1.0).abs() < 1e-6);
}

#[test]
fn weights_whose_sum_is_no_number_are_refused_once_with_their_values() {
    let folder = Folder::three();
    for method in ["linear", "nuslerp", "multislerp"] {
        let said = folder.fault(&format!(
            "merge_method: {method}\nmodels: [<a>, <b>]\nparameters: {{weight: 1.0e+308}}"
        ));
        let part = "the sum of the weights [1e308, 1e308] is larger than a number can be (line 3";
        assert_eq!(said.matches(part).count(), 1, "{method}: {said}");
    }
    let merged =
        folder.merge("merge_method: linear\nmodels: [<a>, <b>]\nparameters: {weight: 8.0e+307}");
    assert_eq!(first(&merged.expect("merges"), LAYER), 3.0);
}

#[test]
fn elements_that_rank_chooses_have_no_chance_that_a_recipe_could_divide_by() {
    let folder = Folder::three();
    let yaml = |method: &str, rescale: &str| {
        format!(
            "merge_method: {method}\nbase_model: <base>\nmodels: [<a>, <b>]\nparameters: {{weight: 1, density: 0.5, \
             rescale: {rescale}}}"
        )
    };
    for method in ["ties", "breadcrumbs", "breadcrumbs_ties"] {
        let said = folder.fault(&yaml(method, "inverse"));
        assert!(said.contains("`rescale` must be"), "{method}: {said}");
        assert!(said.contains("(line 4"), "{method}: {said}");
        for rescale in ["true", "false", "l1", "none"] {
            folder.merge(&yaml(method, rescale)).expect(method);
        }
    }
    for method in ["dare_linear", "dare_ties", "della", "della_linear"] {
        folder.merge(&yaml(method, "inverse")).expect(method);
    }
}

#[test]
fn a_parameter_that_varies_where_it_may_not_is_named_once_with_its_line() {
    let folder = Folder::three();
    for (method, name) in [("pcb", "ratio"), ("knots", "density")] {
        let said = folder.fault(&format!(
            "merge_method: {method}\nbase_model: <base>\nmodels: [<a>, <b>]\nparameters:\n  {name}:\n  - {{filter: \
             'layers.1', value: 0.1}}\n  - {{value: 0.2}}"
        ));
        let part = format!("`{name}` must have one value for all of them (line ");
        assert_eq!(said.matches(&part).count(), 1, "{said}");
    }
}

#[test]
fn a_gram_matrix_that_is_broken_is_named_with_its_file() {
    let folder = Folder::two_layers();
    let gram = "layers.0.mlp.fc";
    folder.doubles("whole", gram, &[2, 2], &[4.0, 1.0, 1.0, 9.0]);
    let yaml = |bad: &str| {
        format!(
            "merge_method: regmean\nmodels:\n- {{model: <a>, parameters: {{grams: <whole>}}}}\n- {{model: <b>, parameters: \
             {{grams: <{bad}>}}}}"
        )
    };
    // Equal grams: the mean.
    let merged = folder.merge(&yaml("whole")).expect("merges");
    assert!((first(&merged, LAYER) - 3.0).abs() < 1e-6);

    folder.doubles("askew", gram, &[2, 2], &[4.0, 6.0, 1.0, 9.0]);
    let path = folder.path("askew");
    assert_eq!(
        folder.fault(&yaml("askew")),
        format!(
            "{}: the gram matrix `{gram}` is not symmetric: it is 6 at [0, 1] and 1 at [1, 0]",
            path.display()
        )
    );

    // Packed: the third number of the triangle.
    folder.doubles("nan", gram, &[3], &[4.0, 1.0, f64::NAN]);
    let path = folder.path("nan");
    assert_eq!(
        folder.fault(&yaml("nan")),
        format!("{}: `{gram}`, a gram matrix, is NaN at [2]", path.display())
    );
}

#[test]
fn fisher_information_that_is_no_mean_of_squares_is_named_with_its_file() {
    let folder = Folder::two_layers();
    let yaml = |bad: &str, more: &str| {
        format!(
            "merge_method: fisher\nmodels:\n- {{model: <a>, parameters: {{fisher: <ones>}}}}\n- {{model: <b>, parameters: \
             {{fisher: <{bad}>}}}}\nparameters: {{{more}}}"
        )
    };
    folder.doubles("ones", LAYER, &[2, 2], &[1.0; 4]);
    let merged = folder.merge(&yaml("ones", "")).expect("merges");
    assert!((first(&merged, LAYER) - 3.0).abs() < 1e-6);

    // The shares 1 + 1e-6 and −1.000001 + 1e-6 add up to 1e-6.
    folder.doubles("negative", LAYER, &[2, 2], &[1.0, 1.0, 1.0, -1.000001]);
    let said = folder.fault(&yaml("negative", ""));
    let path = folder.path("negative");
    assert!(said.starts_with(&format!("{}: ", path.display())), "{said}");
    assert!(
        said.contains(&format!("for `{LAYER}` is -1.000001 at [1, 1]")),
        "{said}"
    );

    folder.doubles("nan", LAYER, &[2, 2], &[1.0, f64::NAN, 1.0, 1.0]);
    let path = folder.path("nan");
    assert_eq!(
        folder.fault(&yaml("nan", "")),
        format!("{}: `{LAYER}` [0, 1] is NaN", path.display())
    );

    let said = folder.fault(&yaml("ones", "weight: 0"));
    assert!(
        said.contains("`weight` must be other than 0 for one model at least"),
        "{said}"
    );

    folder.doubles("ones", LAYER, &[2, 2], &[1.0, 0.0, 1.0, 1.0]);
    let said = folder.fault(&yaml("ones", "floor: 0"));
    assert!(
        said.contains(&format!(
            "cannot merge `{LAYER}`: the shares of all models add up to 0 at [0, 1]"
        )),
        "{said}"
    );
}
