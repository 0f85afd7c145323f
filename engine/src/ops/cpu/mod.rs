//! What makes the CPU device fast: the ops of the model over plain slices, vectorised and on all threads.
//!
//! Every function gives the same bits on every call with the same number of threads: work is cut by
//! index, never by who comes first, and nothing is summed across threads out of order.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod halves;
pub mod matmul;
pub mod norm;
pub mod simd;
pub mod tensor;

/// Runs `work` on a thread of the pool that the ops share: from outside every op would wake a thread and wait for it.
pub fn on_a_thread_of_the_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
