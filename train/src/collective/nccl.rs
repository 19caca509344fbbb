//! NVIDIA cards, through NCCL.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits,
};
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, NcclType, ReduceOp};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Layout, Storage, Tensor};
use evaluate::Result;

use super::rendezvous::Rendezvous;
use super::{Collective, Fault};

/// Bytes of NCCL's name for a group of ranks.
const ID: usize = 128;

/// Ranks with an NVIDIA card each.
///
/// Sums are NCCL's own. Their order goes by how the cards are connected, not by the ranks: the same
/// machines give the same numbers, others may differ in the last bits.
pub struct Nccl {
    device: CudaDevice,
    ranks: Comm,
}

impl Nccl {
    /// Meets the other ranks. Each must call this, with its own card.
    ///
    /// # Errors
    /// [`Fault::NoCard`] when `device` is no NVIDIA card, those of [`Rendezvous::hand_out`], and
    /// [`Fault::Nccl`].
    pub fn start(device: &Device, meeting: &Rendezvous) -> Result<Self> {
        let n_ranks = meeting.n_ranks();
        let Device::Cuda(device) = device else {
            return Err(Fault::NoCard { n_ranks }.into());
        };
        let own: Vec<u8> = match meeting.rank() {
            0 => {
                let id = Id::new().map_err(refused("name the ranks"))?;
                id.internal().iter().map(|&byte| byte as u8).collect()
            }
            _ => Vec::new(),
        };
        let bytes = meeting.hand_out(&own)?;
        let mut id = [0; ID];
        for (to, byte) in id.iter_mut().zip(bytes) {
            *to = byte as _;
        }
        let stream = device.cuda_stream();
        // A group is made on the card of the calling thread.
        (stream.context().bind_to_thread()).map_err(candle_core::Error::wrap)?;
        let ranks = Comm::from_rank(stream, meeting.rank(), n_ranks, Id::uninit(id));
        Ok(Self {
            device: device.clone(),
            ranks: ranks.map_err(refused("join the ranks"))?,
        })
    }

    /// Runs an operation on the card on values in memory.
    fn on_card<T>(
        &self,
        values: &mut [T],
        action: &'static str,
        run: impl FnOnce(&Comm, &mut CudaSlice<T>) -> Result<(), NcclError>,
    ) -> Result<()>
    where
        T: DeviceRepr + 'static,
    {
        if values.is_empty() {
            return Ok(());
        }
        let mut buffer = self.device.clone_htod(&*values)?;
        run(&self.ranks, &mut buffer).map_err(refused(action))?;
        let stream = self.ranks.stream();
        (stream.memcpy_dtoh(&buffer, values)).map_err(candle_core::Error::wrap)?;
        Ok(stream.synchronize().map_err(candle_core::Error::wrap)?)
    }

    fn sum_on_card<T>(&self, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage>
    where
        T: CudaDType + NcclType + DeviceRepr + ValidAsZeroBits,
        CudaSlice<T>: DevicePtr<T> + DevicePtrMut<T>,
    {
        let n = layout.shape().elem_count();
        let own = storage.as_cuda_slice::<T>()?;
        let own = own.slice(layout.start_offset()..layout.start_offset() + n);
        let mut sum = self.device.alloc_zeros::<T>(n)?;
        let summed = self.ranks.all_reduce(&own, &mut sum, &ReduceOp::Sum);
        summed.map_err(refused("sum"))?;
        Ok(CudaStorage::wrap_cuda_slice(sum, storage.device().clone()))
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.world_size()
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.on_card(values, "sum", |ranks, buffer| {
            ranks.all_reduce_in_place(buffer, &ReduceOp::Sum).map(drop)
        })
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.on_card(values, "sum", |ranks, buffer| {
            ranks.all_reduce_in_place(buffer, &ReduceOp::Sum).map(drop)
        })
    }

    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        let own = match tensor.dtype() {
            DType::F64 => tensor.detach().contiguous()?,
            _ => tensor.detach().to_dtype(DType::F32)?.contiguous()?,
        };
        let sum = {
            let (storage, layout) = own.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                return evaluate::ranks::sum_through_memory(self, tensor);
            };
            match own.dtype() {
                DType::F64 => self.sum_on_card::<f64>(storage, layout)?,
                _ => self.sum_on_card::<f32>(storage, layout)?,
            }
        };
        let sum = Tensor::from_storage(Storage::Cuda(sum), own.shape(), BackpropOp::none(), false);
        Ok(sum.to_dtype(tensor.dtype())?)
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather_equal(&[own.len() as u64], "gather lengths")?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.gather_equal(&padded, "gather")?;
        let parts = all.chunks(longest.max(1)).chain(std::iter::repeat(&[][..]));
        let of_rank = |(part, &n): (&[u8], &u64)| part[..n as usize].to_vec();
        Ok(parts.zip(&lengths).map(of_rank).collect())
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()> {
        self.on_card(values, "broadcast", |ranks, buffer| {
            ranks.broadcast_in_place(buffer, root as i32).map(drop)
        })
    }

    fn barrier(&self) -> Result<()> {
        self.sum(&mut [0.0])
    }
}

impl Nccl {
    /// Values of all ranks, of which each has as many.
    fn gather_equal<T>(&self, own: &[T], action: &'static str) -> Result<Vec<T>>
    where
        T: NcclType + DeviceRepr + ValidAsZeroBits + Clone + 'static,
    {
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let own = self.device.clone_htod(own)?;
        let mut all = self.device.alloc_zeros::<T>(own.len() * self.size())?;
        let gathered = self.ranks.all_gather(&own, &mut all);
        gathered.map_err(refused(action))?;
        Ok(self.device.clone_dtoh(&all)?)
    }
}

fn refused(action: &'static str) -> impl Fn(NcclError) -> Fault {
    move |error| Fault::Nccl {
        action,
        code: format!("{:?}", error.0),
    }
}
