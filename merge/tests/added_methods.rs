//! Methods that a program adds while it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fixtures::Raw;
use half::bf16;
use merge::execute::{RunOptions, execute, in_memory};
use merge::io::WriteOptions;
use merge::methods::{
    self, Base, Chunk, ElementKernel, GroupData, GroupShape, Masks, Needs, Operation, StepRounding,
    Value, WholeKernel,
};
use merge::progress::Silent;
use merge::recipe::{ModelRef, Parameters};
use merge::{Checkpoint, Error, MergeFault, MergeMethod, MergePlan, MergeRecipe, Result};
use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;

/// The function of a test's method.
#[derive(Clone, Copy)]
enum Deed {
    /// The largest of the elements.
    Largest,
    /// Fails at the first chunk.
    Fail,
    /// Returns a whole tensor of this many elements, each one half.
    Halves(usize),
}

struct Added(Deed);

impl MergeMethod for Added {
    fn name(&self) -> &'static str {
        "of_a_test"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::None, 2, 2)
    }

    fn operation(&self, _: &GroupShape<'_>) -> Result<Operation> {
        Ok(match self.0 {
            Deed::Halves(_) => Operation::Whole(Arc::new(Self(self.0))),
            _ => Operation::Elementwise(Arc::new(Self(self.0))),
        })
    }

    fn describe(&self, _: &GroupShape<'_>) -> String {
        "what a test adds".to_owned()
    }
}

impl Added {
    fn combine<V: Value>(&self, chunk: &Chunk<'_, V>, out: &mut [V::Real]) -> Result<()> {
        if let Deed::Fail = self.0 {
            return Err(MergeFault::AddedMethod {
                slot: "w".to_owned(),
                method: self.name(),
                reason: "it will not".to_owned(),
            }
            .into());
        }
        for (index, out) in out.iter_mut().enumerate() {
            let (a, b) = (
                chunk.members[0][index].real(),
                chunk.members[1][index].real(),
            );
            *out = if b > a { b } else { a };
        }
        Ok(())
    }
}

impl ElementKernel for Added {
    fn unit(&self) -> usize {
        1
    }

    fn masks(&self) -> Option<&dyn Masks> {
        None
    }

    fn combine_f32(&self, chunk: &Chunk<'_, f32>, _: StepRounding, out: &mut [f32]) -> Result<()> {
        self.combine(chunk, out)
    }

    fn combine_bf16(
        &self,
        chunk: &Chunk<'_, bf16>,
        _: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.combine(chunk, out)
    }

    fn combine_f64(&self, chunk: &Chunk<'_, f64>, _: StepRounding, out: &mut [f64]) -> Result<()> {
        self.combine(chunk, out)
    }
}

impl WholeKernel for Added {
    fn merge(&self, _: &dyn GroupData) -> Result<ArrayD<f64>> {
        let n = match self.0 {
            Deed::Halves(n) => n,
            _ => 0,
        };
        Ok(ArrayD::from_elem(IxDyn(&[n]), 0.5))
    }

    fn peak_bytes(&self, _: &[usize], _: usize) -> u64 {
        0
    }
}

/// Two models of one tensor: 0, 1, 2, ... and 3, 2, 1, ...
struct Models(tempfile::TempDir);

/// More than a chunk.
const N: usize = 20_000;

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in [("a", 1.0), ("b", -1.0)] {
            let values = (0..N).map(|index| value * index as f32);
            let raw = Raw {
                dtype: Dtype::F32,
                shape: vec![N / 4, 4],
                bytes: values.flat_map(f32::to_le_bytes).collect(),
            };
            let path = folder.path().join(format!("{name}.safetensors"));
            fixtures::write(&path, &BTreeMap::from([("w".to_owned(), raw)]));
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn plan(&self, method: &str) -> Result<MergePlan> {
        let model = |name: &str| ModelRef::new(self.path(name));
        let recipe = MergeRecipe {
            merge_method: method.to_owned(),
            models: vec![model("a.safetensors"), model("b.safetensors")],
            ..MergeRecipe::default()
        };
        Ok(MergePlan::resolve(&recipe)?.0)
    }

    fn merged(&self, method: &str) -> Result<Checkpoint> {
        in_memory(&self.plan(method)?, &RunOptions::default(), &Silent)
    }
}

fn add(name: &str, deed: Deed) -> Result<()> {
    let make = move |_: &Parameters, _: bool| -> Result<Box<dyn MergeMethod>> {
        Ok(Box::new(Added(deed)))
    };
    methods::add(name, Arc::new(make))
}

#[test]
fn an_added_method_is_named_by_recipes_like_any_other() {
    let models = Models::new();
    let unknown = models.plan("of_a_test_largest").map(drop);
    let unknown = unknown.expect_err("it is not added yet");
    assert!(matches!(unknown, Error::UnknownMethod { .. }), "{unknown}");
    add("of_a_test_largest", Deed::Largest).expect("added");
    let merged = models.merged("of_a_test_largest").expect("merged");
    let bytes = merged.read_all("w").expect("read");
    // The larger of n and -n.
    let expected: Vec<u8> = (0..N).flat_map(|n| (n as f32).to_le_bytes()).collect();
    assert!(bytes == expected);
    let error = models
        .plan("of_a_test_larges")
        .map(drop)
        .expect_err("not added");
    let said = error.to_string();
    assert!(
        said.contains("ties") && said.contains("of_a_test_largest"),
        "{said}"
    );
}

#[test]
fn a_kernel_that_fails_ends_the_merge_with_its_error_and_no_file() {
    let models = Models::new();
    add("of_a_test_fails", Deed::Fail).expect("added");
    let out = models.path("out.safetensors");
    let plan = models.plan("of_a_test_fails").expect("a plan");
    let error = execute(
        &plan,
        &WriteOptions::new(&out),
        &RunOptions::default(),
        &Silent,
    );
    let said = error.map(drop).expect_err("it fails").to_string();
    assert_eq!(said, "cannot merge `w`: of_a_test fails: it will not");
    assert!(!out.exists());
}

#[test]
fn a_whole_result_of_another_length_is_refused() {
    let models = Models::new();
    for n in [0, N - 1, N + 1] {
        add("of_a_test_halves", Deed::Halves(n)).expect("added, or replaced");
        let error = models.merged("of_a_test_halves").map(drop);
        let said = error.expect_err("refused").to_string();
        let expected = format!(
            "cannot merge `w`: the method returns shape [{n}], expected [{}, 4]",
            N / 4
        );
        assert_eq!(said, expected);
    }
    add("of_a_test_halves", Deed::Halves(N)).expect("replaced");
    models.merged("of_a_test_halves").expect("it fits");
}

#[test]
fn names_of_methods_that_there_are_and_odd_names_are_refused() {
    for name in ["ties", "", "Ties", "a b", "é", &"x".repeat(65)] {
        let error = add(name, Deed::Largest).expect_err("refused");
        let Error::Merge(fault) = &error else {
            panic!("{error}");
        };
        assert!(matches!(**fault, MergeFault::MethodName { .. }), "{error}");
    }
}
