//! Faults of several kinds are large; an [`Error`] holds them in a box.

use super::{
    ActivationFault, AdapterFault, AssemblyFault, ContainerFault, Error, ExportFault, GgufFault,
    MergeFault, QuantizationFault, RemoteFault, SliceFault, StatisticsFault, TrainerFault,
};

macro_rules! boxed {
    ($($fault:ty => $variant:ident,)*) => {
        $(impl From<$fault> for Error {
            fn from(fault: $fault) -> Self {
                Self::$variant(Box::new(fault))
            }
        })*
    };
}

boxed! {
    ActivationFault => Activations,
    AdapterFault => Adapter,
    AssemblyFault => Assembly,
    ContainerFault => Container,
    ExportFault => Export,
    GgufFault => Gguf,
    MergeFault => Merge,
    QuantizationFault => Quantization,
    RemoteFault => Remote,
    SliceFault => Slices,
    StatisticsFault => Statistics,
    TrainerFault => Trainer,
}
