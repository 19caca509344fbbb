//! FLM's model against numbers that the published program printed: fixtures/flm.

use candle_core::DType;
use evaluate::Weights;
use evaluate::forward;
use evaluate::models::{Vit, VitForm, vit};
use evaluate::nn::Pass;
use fixtures::{Case, list, text};
use merge::io::OpenOptions;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::flm_model::{given, open};
use crate::golden::models::values;

fixtures::golden_tests! {
    package: "evaluate", set: "flm",
    golden_flm_every_output_of_every_mode_is_that_of_the_published_program: "forward" => outputs,
    golden_flm_the_image_encoder_has_the_published_heads: "vit_forward" => image_encoder,
}

/// The pass of a case.
fn pass_of(case: &Case) -> &'static str {
    match (case.param("mode"), case.param("batch")) {
        (_, Some("nlvr2")) => "nlvr2",
        (Some("three_stream"), _) => match case["params"]["only_use_cls_for_flm"].as_bool() {
            Some(true) => "only_use_cls",
            _ => "three_stream",
        },
        _ if case.param("ids") == Some("text_ids_mlm") => "mlm",
        _ if case["params"]["causal"] == true => "one_stream_causal",
        _ => "one_stream_bidirectional",
    }
}

/// Rows from which everything is hidden, of some tensors: their tolerance is another.
struct HiddenRows {
    place: [usize; 2],
    tensors: Vec<String>,
    tolerance: [f64; 2],
}

impl HiddenRows {
    fn of(case: &Case) -> Option<Self> {
        let rows = &case["tolerance"]["hidden_rows"];
        let number = |name: &str| rows[name].as_f64();
        Some(Self {
            place: [number("sample")? as usize, number("row")? as usize],
            tensors: list(&rows["tensors"])
                .iter()
                .map(|t| text(t).to_owned())
                .collect(),
            tolerance: [number("rtol")?, number("atol")?],
        })
    }

    /// Whether element `at` of a tensor of this shape lies in such a row.
    fn holds(&self, name: &str, shape: &[usize], at: usize) -> bool {
        let is_such = self
            .tensors
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            });
        let [_, rows, ..] = *shape else { return false };
        let width: usize = shape[2..].iter().product();
        is_such && [at / width / rows, at / width % rows] == self.place
    }
}

fn outputs(case: &Case) {
    let model = open(case, false, DType::F32).model;
    let given = given(case, &model, BTreeMap::new(), DType::F32);
    let pass = [pass_of(case).to_owned()];
    let found = forward::run(&model, &given, &pass, true);
    let found = found.expect("the pass runs").tensors;
    let expected = case.set().tensors(text(&case["expected"][0]));
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let hidden = HiddenRows::of(case);
    assert!(!expected.is_empty(), "a comparison");
    for (name, expected) in &expected {
        let found = found.get(name);
        let found = found.unwrap_or_else(|| panic!("{}: no output {name}", case.id()));
        assert_eq!(found.dims(), expected.shape, "{}: {name}", case.id());
        let shape = &expected.shape;
        let pairs = values(found).into_iter().zip(expected.values());
        for (at, (found, expected)) in pairs.enumerate() {
            let hidden = (hidden.as_ref()).filter(|hidden| hidden.holds(name, shape, at));
            let [rtol, atol] = hidden.map_or([rtol, atol], |hidden| hidden.tolerance);
            assert!(
                (found - expected).abs() <= atol + rtol * expected.abs(),
                "{}: {name}: element {at} is {found} instead of {expected}",
                case.id()
            );
        }
    }
}

fn image_encoder(case: &Case) {
    let set = case.set();
    let file = set.path(text(&case["input"][0]));
    let file = Arc::new(merge::io::open(&file, &OpenOptions::default()).expect("it opens"));
    let layout = merge::layouts::Generic::read(&file);
    let weights = Weights::new(
        file,
        &layout,
        str::to_owned,
        &candle_core::Device::Cpu,
        DType::F32,
    );
    let weights = weights.expect("names");
    let prefix = "vit_model.visual.";
    let config = vit::Config::read_form(&weights, prefix, None, VitForm::Clip).expect("sizes");
    assert_eq!(Some(config.n_heads), case.count("heads"));
    assert_eq!(Some(config.patch_size), case.count("patch_size"));
    assert_eq!(Some(config.image_size), case.count("image_size"));
    let vit = Vit::load(&weights, prefix, config).expect("it loads");
    let given = set.tensors(text(&case["input"][1]));
    let found = vit
        .tokens(&given["image"].tensor(), &Pass::new())
        .expect("a pass");
    let expected = set.tensors(text(&case["expected"][0]))["vit.out"].values();
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let difference = fixtures::first_difference(&values(&found), &expected, rtol, atol);
    assert_eq!(difference, None);
}
