//! Compiles plain loops for the processor's wide vectors, without unsafe code of ours.

/// Runs `work` compiled for AVX2 (and its companions) where the processor has them, as far as it is inlined here.
///
/// Plain loops over small arrays become vector instructions; results do not depend on the processor, as the compiler
/// neither reorders nor fuses floating-point operations.
/// Functions that are not inlined are compiled without: mark the closure, and every function with a loop that it calls,
/// `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorize<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}
