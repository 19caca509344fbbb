//! Loops compiled for several instruction sets, the widest chosen at run time.

use pulp::NullaryFnOnce;

/// Runs `f` with the widest vectors that the processor has. `f` must be marked
/// `#[inline(always)]`, and so must the functions it calls.
///
/// # Example
/// ```
/// let mut values = [1.0f32; 100];
/// merge::vectorized(
///     #[inline(always)]
///     || values.iter_mut().for_each(|value| *value *= 2.0),
/// );
/// assert_eq!(values, [2.0; 100]);
/// ```
#[inline(always)]
pub fn vectorized<T>(f: impl FnMut() -> T) -> T {
    pulp::Arch::new().dispatch(Loop(f))
}

/// A closure that is called by way of `FnMut`. Called as a `FnOnce`, as `pulp` would, it goes
/// through a shim that the compiler does not inline, and with it the closure is compiled without
/// the wide vectors: GELU took five times as long.
struct Loop<F>(F);

impl<T, F: FnMut() -> T> NullaryFnOnce for Loop<F> {
    type Output = T;

    #[inline(always)]
    fn call(mut self) -> T {
        (self.0)()
    }
}
