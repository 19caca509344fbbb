//! Faults of merges of several checkpoints.

use std::path::PathBuf;

use crate::DType;
use crate::recipe::Place;

/// A reason why checkpoints cannot be merged as a recipe says, with the recipe's line and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeFault {
    /// Not one of `models`, `slices` and `modules`, but none or several.
    #[error("{}", match module {
        None => "a recipe has one of `models`, `slices` and `modules`".to_owned(),
        Some(module) => format!("the module `{module}` has either `models` or `slices`"),
    })]
    ModelsOrSlices {
        /// The module at fault; `None` for the recipe.
        module: Option<String>,
    },
    /// `layers` of a recipe with modules.
    #[error("`layers` stands in the module whose layers it names")]
    LayersOfModules,
    /// A module that the model does not have.
    #[error("`modules`: {model} has no module `{module}`; it has {}", known.join(", "))]
    UnknownModule {
        /// Its name in the recipe.
        module: String,
        /// The model.
        model: String,
        /// Its modules, with their number of tensors.
        known: Vec<String>,
    },
    /// Two names of the recipe that mean one module.
    #[error("`modules` names `{module}` twice")]
    ModuleTwice {
        /// The module.
        module: String,
    },
    /// Modules of the model that a recipe with `modules` does not name.
    #[error("`modules` does not name {}, which {model} has", modules.join(", "))]
    UnnamedModules {
        /// The modules, with their number of tensors.
        modules: Vec<String>,
        /// The model.
        model: String,
    },
    /// The method takes another number of checkpoints.
    #[error("{method} merges {wanted}, and {whole} has {found}{place}")]
    InputCount {
        /// The method.
        method: &'static str,
        /// The numbers that it takes, in words.
        wanted: String,
        /// The recipe, the module or the slice.
        whole: &'static str,
        /// The models, in words; the base is not counted.
        found: String,
        /// The first model.
        place: Place,
    },
    /// A method has another number of inputs in one group.
    #[error("cannot merge `{slot}`: {method} merges {wanted}, and there are {found}")]
    MemberCount {
        /// The merged key.
        slot: String,
        /// The method.
        method: &'static str,
        /// The numbers that it takes, in words.
        wanted: String,
        /// The number of inputs.
        found: usize,
    },
    /// A parameter that has no default is not given for a model.
    #[error("cannot merge `{slot}`: {method} needs `{name}` for {member}{place}")]
    MissingParameter {
        /// The merged key.
        slot: String,
        /// The method.
        method: &'static str,
        /// The parameter.
        name: &'static str,
        /// The model or expert, or `all models`.
        member: String,
        /// The model's entry.
        place: Place,
    },
    /// A parameter has a value that this tensor cannot have.
    #[error("cannot merge `{slot}`: `{name}` must be {wanted}{place}")]
    BadValue {
        /// The merged key.
        slot: String,
        /// The parameter.
        name: &'static str,
        /// The valid values, in words.
        wanted: String,
        /// The place of the value.
        place: Place,
    },
    /// A method that was added at run time fails.
    #[error("cannot merge `{slot}`: {method} fails: {reason}")]
    AddedMethod {
        /// The merged key.
        slot: String,
        /// The method.
        method: &'static str,
        /// The value that it states.
        reason: String,
    },
    /// A method returns a tensor of another shape than the output has.
    #[error("cannot merge `{slot}`: the method returns shape {found:?}, expected {expected:?}")]
    ResultShape {
        /// The merged key.
        slot: String,
        /// The shape of the result.
        found: Vec<usize>,
        /// The shape of the output.
        expected: Vec<usize>,
    },
    /// A method cannot be added under this name.
    #[error("a method cannot be added as `{name}`: {why}")]
    MethodName {
        /// The name.
        name: String,
        /// The fault.
        why: &'static str,
    },
    /// Layers that are to be aligned do not follow each other.
    #[error("`align_layers`: in {} `{layer}` {why}", model.display())]
    NotASequence {
        /// The layer.
        layer: String,
        /// The model.
        model: PathBuf,
        /// The fault.
        why: &'static str,
    },
    /// A matrix has no singular values or eigenvalues that an iteration would find.
    #[error(
        "cannot merge `{slot}`: its singular values do not converge, so it holds numbers that are not finite or far too large"
    )]
    NoDecomposition {
        /// The merged key.
        slot: String,
    },
    /// A method that looks at all tensors together has another parameter for one of them.
    #[error(
        "cannot merge `{slot}`: {method} looks at all tensors together, so `{name}` must have one value for all of them{place}"
    )]
    VariesByTensor {
        /// The merged key.
        slot: String,
        /// The method.
        method: &'static str,
        /// The parameter.
        name: &'static str,
        /// The place of one of its values.
        place: Place,
    },
    /// Weights whose sum is infinite.
    #[error(
        "cannot merge `{slot}`: the sum of the weights {weights:?} is larger than a number can be{place}"
    )]
    WeightsOverflow {
        /// The merged key.
        slot: String,
        /// The weights of the models.
        weights: Vec<f64>,
        /// The weight of the first model.
        place: Place,
    },
    /// Weights that must be divided by their sum add up to nothing.
    #[error("cannot merge `{slot}`: the weights add up to 0{place}")]
    WeightsSumToZero {
        /// The merged key.
        slot: String,
        /// The weight of the first model.
        place: Place,
    },
    /// A pattern of tensor names is no regular expression.
    #[error("`{pattern}` is no regular expression{place}: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// The fault.
        reason: String,
        /// Its place.
        place: Place,
    },
    /// A tensor that only some checkpoints have.
    #[error("`{key}` is in {} only, not in {}{place}", present.join(", "), absent.join(", "))]
    OnlyInSome {
        /// The tensor.
        key: String,
        /// The models that have it.
        present: Vec<String>,
        /// The models that lack it.
        absent: Vec<String>,
        /// The first of those.
        place: Place,
    },
    /// Gram matrices, a Fisher file or activations of another model.
    #[error(
        "{} was made of {summed}, not of {}: it must be of the very weights that are merged",
        grams.display(), model.display()
    )]
    ForeignGrams {
        /// The file.
        grams: PathBuf,
        /// The files it was made of.
        summed: String,
        /// The model it is given for.
        model: PathBuf,
    },
    /// The same tensors are called otherwise in another model.
    #[error("{n_missing} tensors are in some of the models only: {cause}{place}")]
    OtherSpelling {
        /// The number of tensors.
        n_missing: usize,
        /// The difference of the names, as a clause.
        cause: String,
        /// The remedy.
        advice: String,
        /// The model's entry.
        place: Place,
    },
    /// No tensor is in all models.
    #[error("nothing would be merged: each of {n_missing} tensors is in some of the models only")]
    NothingCombined {
        /// The number of tensors.
        n_missing: usize,
    },
    /// Tensors of one name and different shapes.
    #[error("`{key}` has shape {found:?} in {model}, expected {expected:?} as in {first}{place}")]
    Shapes {
        /// The tensor.
        key: String,
        /// The checkpoint that differs.
        model: String,
        /// Its shape.
        found: Vec<usize>,
        /// The checkpoint it is compared with.
        first: String,
        /// The shape there.
        expected: Vec<usize>,
        /// The entry of the one that differs.
        place: Place,
    },
    /// Numbers that cannot be merged, of different dtypes.
    #[error(
        "`{key}` has dtype {found} in {model} and {expected} in {first}, and only floats are merged{place}"
    )]
    DTypes {
        /// The tensor.
        key: String,
        /// The checkpoint that differs.
        model: String,
        /// Its dtype.
        found: DType,
        /// The checkpoint it is compared with.
        first: String,
        /// The dtype there.
        expected: DType,
        /// The entry of the one that differs.
        place: Place,
    },
    /// Integers or booleans that are not the same everywhere.
    #[error("`{key}` holds no floats, so it is copied, but its values differ between the models")]
    UnequalIntegers {
        /// The tensor.
        key: String,
    },
    /// An element of an input that is no number. A method may drop it, so that its result would look sound.
    #[error("{}: `{key}` {index:?} is {value}", path.display())]
    NonFiniteInput {
        /// The model.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The element, one number per axis.
        index: Vec<usize>,
        /// NaN or an infinity.
        value: f64,
    },
    /// Two tensors got one name by a `rename`.
    #[error("{}: `{first}` and `{second}` would both be called `{name}`{place}", path.display())]
    RenamedAlike {
        /// The checkpoint.
        path: PathBuf,
        /// One of the tensors.
        first: String,
        /// The other.
        second: String,
        /// The common name.
        name: String,
        /// The model's entry.
        place: Place,
    },
    /// A key, or a part of one, that nothing reads.
    #[error("`{key}` has no effect: {why}{place}")]
    NoEffect {
        /// The key.
        key: String,
        /// The reason, as a clause.
        why: String,
        /// The place of the key, or of the model that has it.
        place: Place,
    },
    /// A parameter for all models that stands under one of them.
    #[error(
        "{method} reads `{name}` for all models together, and the recipe gives it to one model{place}"
    )]
    Misplaced {
        /// The method.
        method: &'static str,
        /// The parameter.
        name: &'static str,
        /// The place of the parameter.
        place: Place,
    },
    /// Two keys of a recipe for one setting.
    #[error("a recipe has `{one}` or `{other}`, not both")]
    TwoKeys {
        /// One.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// The output has layers with holes between them, or others than its configuration can say.
    #[error("the output and its config.json contradict each other: {reason}")]
    ConfigLayers {
        /// The contradiction.
        reason: String,
    },
    /// Models of one shape that compute with other numbers of heads.
    #[error(
        "config.json of {model} has `{key}: {found}`, and that of {first} `{key}: {expected}`{place}"
    )]
    Heads {
        /// The model that differs.
        model: String,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// The model whose configuration the output gets.
        first: String,
        /// The value there.
        expected: String,
        /// The entry of the one that differs.
        place: Place,
    },
    /// Documents that build on each other in a circle.
    #[error("the documents build on each other in a circle: {}{place}", names.join(" -> "))]
    Cycle {
        /// Their names, the first once more at the end.
        names: Vec<String>,
        /// The place where the circle closes.
        place: Place,
    },
    /// A document whose result no other uses.
    #[error("the document `{name}` is used by no other")]
    UnusedDocument {
        /// Its name.
        name: String,
    },
    /// Vocabularies that differ.
    #[error("the vocabularies of {first} and {second} differ: {difference}{place}")]
    Vocabularies {
        /// A checkpoint.
        first: String,
        /// Another.
        second: String,
        /// The difference, as a clause.
        difference: String,
        /// The entry of the other.
        place: Place,
    },
    /// Renaming makes a name that no tensor has.
    #[error("`rename`: `{pattern}` makes of `{name}` a name of more than {limit} bytes{place}")]
    LongName {
        /// The tensor.
        name: String,
        /// The pattern.
        pattern: String,
        /// The longest name.
        limit: usize,
        /// The model's entry.
        place: Place,
    },
    /// More models, slices and tensors than any merge has.
    #[error(
        "the recipe names more than {limit} tensors, each once for each output tensor that it goes into"
    )]
    TooManyInputs {
        /// The limit.
        limit: usize,
    },
    /// A checkpoint without the file that says what its tokens are.
    #[error("{model}: no tokenizer.json beside it, which `tokenizer_source` needs{place}")]
    NoTokenizer {
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// `chat_template` is neither a template nor the name of one.
    #[error("`chat_template: {asked}` is neither a template in Jinja nor one of auto, {known}")]
    ChatTemplate {
        /// The value in the recipe.
        asked: String,
        /// Templates with names.
        known: String,
    },
    /// `tokenizer` says of a token something that cannot be.
    #[error("`tokenizer`: {}{reason}", if token.is_empty() { String::new() } else { format!("`{token}`: ") })]
    TokenRule {
        /// The token.
        token: String,
        /// The fault.
        reason: String,
    },
    /// No tensor has a row for every token.
    #[error(
        "`tokenizer_source`: no tensor's name says that its rows stand for tokens (known are {known})"
    )]
    NoEmbeddings {
        /// The endings of such names.
        known: String,
    },
    /// A file beside a checkpoint is damaged or of another form.
    #[error("{}: {reason}", path.display())]
    Companion {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// A kind of work that goes with experts of one checkpoint only, or the other way round.
    #[error("{method} merges experts of one checkpoint, not several checkpoints")]
    ExpertsOnly {
        /// The method.
        method: &'static str,
    },
    /// A mixture whose tensors do not fit together.
    #[error("{}: the mixture `{host}` {reason}", path.display())]
    BrokenMixture {
        /// The checkpoint.
        path: PathBuf,
        /// The first part of its tensors' names.
        host: String,
        /// The fault, as a clause.
        reason: String,
    },
    /// Mixtures of one place with different numbers of experts.
    #[error(
        "the mixture `{mixture}` has {found} experts in {model}, and {expected} in {first}{place}"
    )]
    ExpertCounts {
        /// The first part of its tensors' names.
        mixture: String,
        /// The checkpoint that differs.
        model: String,
        /// Its experts.
        found: usize,
        /// The checkpoint it is compared with.
        first: String,
        /// The experts there.
        expected: usize,
        /// The entry of the one that differs.
        place: Place,
    },
    /// A router whose experts are missing.
    #[error(
        "{model} has the router `{router}` without its experts: it has no `{mixture}.…` of them{place}"
    )]
    RouterAlone {
        /// The router.
        router: String,
        /// The mixture that it belongs to.
        mixture: String,
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// Experts whose router is missing.
    #[error(
        "{model}: the mixture `{mixture}` has no router, whose rows must move with the experts{place}"
    )]
    NoRouter {
        /// The mixture.
        mixture: String,
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// Experts are to be put in order in a model that has none.
    #[error("`align_experts`: {model} has no mixture of experts{place}")]
    NoMixtures {
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// Experts or units cannot be put in order here.
    #[error("`{setting}`: {why}")]
    CannotAlign {
        /// The setting of the recipe.
        setting: &'static str,
        /// The reason, as a clause.
        why: &'static str,
    },
    /// A transformer whose permutations are not known.
    #[error("`align`: in {} `{key}`: {why}", model.display())]
    NotPermutable {
        /// The checkpoint.
        model: PathBuf,
        /// The tensor.
        key: String,
        /// The reason.
        why: String,
    },
    /// Experts are to be matched by their outputs, and the model names no gram file of them.
    #[error("`align_experts: outputs` needs `outputs`, a gram file, for {model}{place}")]
    OutputsNotGiven {
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// A file of outputs that nothing reads.
    #[error("`outputs` of a model is read for `align_experts: outputs` alone{place}")]
    OutputsUnused {
        /// The model's entry.
        place: Place,
    },
    /// A gram file without the inputs of the experts' last layers.
    #[error(
        "{}: lacks the gram matrices of the last layers of the experts of `{mixture}`, by which they are matched",
        path.display()
    )]
    NoOutputs {
        /// The gram file.
        path: PathBuf,
        /// The mixture.
        mixture: String,
    },
    /// A gram file that does not say how tokens go to experts.
    #[error(
        "{}: it does not say how tokens go to the experts of `{mixture}`: {reason}", path.display()
    )]
    NoRouting {
        /// The gram file.
        path: PathBuf,
        /// The mixture.
        mixture: String,
        /// The contents instead, as a clause.
        reason: String,
    },
    /// Experts that would be merged with others than they are.
    #[error(
        "{}: the experts of `{mixture}` have no common order with those of {}: {n_moved} of {n_experts} are like experts \
         of other numbers (cosine {matched:.2}, and {in_place:.2} with those of their own number)",
        path.display(), first.display()
    )]
    ShuffledExperts {
        /// The mixture.
        mixture: String,
        /// The checkpoint.
        path: PathBuf,
        /// The one whose order counts.
        first: PathBuf,
        /// Experts with another number there.
        n_moved: usize,
        /// All experts.
        n_experts: usize,
        /// Mean cosine with those of the same number.
        in_place: f64,
        /// Mean cosine with those that they are.
        matched: f64,
    },
    /// Vectors that point nowhere together.
    #[error(
        "cannot merge `{slot}`: the inputs point away from each other, so that they have no mean direction"
    )]
    NoDirection {
        /// The merged key.
        slot: String,
    },
}
