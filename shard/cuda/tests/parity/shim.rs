//! The processor as a device: it shows what a card would leave to chance.

use crate::places::{folder, host};
use obelysk_cuda::device::{Arg, Device, DeviceError, Shape};
use obelysk_cuda::host::Host;

/// Every thread takes its neighbour's value; `BARRIER` is what lies between writing and reading.
const NEIGHBOUR: &str = r#"
extern "C" __global__ void neighbour(u32* out) {
    SHARED(u32, values);
    values[threadIdx.x] = threadIdx.x;
    BARRIER
    out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void divergent(u32* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}
extern "C" __global__ void half_a_warp(u32* out) {
    u32 v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_down_sync(0xffffffffu, v, 1);
    out[threadIdx.x] = v;
}
extern "C" __global__ void behind(u32* out) {
    SHARED(u32, values);
    values[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 1;
}
extern "C" __global__ void beside(u32* out) { out[threadIdx.x + 1] = 1; }
extern "C" __global__ void sums(u32* out) {
    u32 v = threadIdx.x;
    for (u32 step = 16; step > 0; step >>= 1) v += __shfl_down_sync(0xffffffffu, v, step);
    out[threadIdx.x] = v;
}
"#;

const SHAPE: Shape = Shape { blocks: 1, threads: 64, shared: 256 };

fn device(barrier: &str, order: u64) -> Option<Host> {
    // Skips and requirements are those of the kernels themselves.
    host()?;
    let text = format!("typedef unsigned int u32;\n{}", NEIGHBOUR.replace("BARRIER", barrier));
    Some(Host::of_text(folder(), &text, order).unwrap())
}

fn run(device: &Host, kernel: &'static str) -> Result<Vec<u32>, DeviceError> {
    run_in(device, kernel, SHAPE)
}

fn run_in(device: &Host, kernel: &'static str, shape: Shape) -> Result<Vec<u32>, DeviceError> {
    let memory = device.allocate(256)?;
    let args = [Arg::Address(device.address(&memory))];
    // SAFETY: each of these kernels takes one pointer to 64 words; `beside` writes one more, into the guard that is there for it.
    unsafe { device.launch(kernel, shape, &args) }?;
    let mut out = vec![0u8; 256];
    let read = device.download(&memory, 0, &mut out);
    if read.is_err() {
        // The guard is broken on purpose; dropping the memory would say so once more.
        std::mem::forget(memory);
    }
    read.map(|()| out.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[test]
fn a_missing_barrier_shows_and_one_that_is_there_does_not() {
    let expected: Vec<u32> = (0..64).map(|i| (i + 1) % 64).collect();
    for order in [0, 1, 2, 3, 4, 5] {
        let (Some(whole), Some(broken)) = (device("__syncthreads();", order), device("", order)) else { return };
        assert_eq!(run(&whole, "neighbour").unwrap(), expected);
        assert_ne!(run(&broken, "neighbour").unwrap(), expected, "order {order}");
    }
}

#[test]
fn barriers_that_not_all_reach_are_errors() {
    for order in [0, 5] {
        let Some(device) = device("__syncthreads();", order) else { return };
        for kernel in ["divergent", "half_a_warp"] {
            assert!(matches!(run(&device, kernel), Err(DeviceError::Failed { .. })), "{kernel}");
        }
        // And the machine goes on.
        let v = run(&device, "sums").unwrap();
        assert_eq!((v[0], v[32]), ((0..32).sum(), (32..64).sum()));
    }
}

#[test]
fn writing_beside_a_buffer_shows() {
    let Some(device) = device("__syncthreads();", 0) else { return };
    assert!(matches!(run(&device, "beside"), Err(DeviceError::Failed { .. })));
}

#[test]
fn shared_memory_ends_where_the_launch_says_and_no_card_gives_more_than_this() {
    let Some(device) = device("__syncthreads();", 0) else { return };
    let of = |kernel, shape| run_in(&device, kernel, shape).is_ok();
    assert!(of("behind", Shape { shared: 260, ..SHAPE }) && !of("behind", SHAPE));
    assert!(of("sums", Shape { shared: 48 << 10, ..SHAPE }) && !of("sums", Shape { shared: (48 << 10) + 4, ..SHAPE }));
    assert!(!of("sums", Shape { threads: 40, ..SHAPE }));
    assert!(of("sums", Shape { threads: 32, ..SHAPE }));
}

#[test]
fn memory_ends_where_the_budget_does() {
    let Some(host) = host() else { return };
    let device = host.within(1000);
    let first = device.allocate(600).unwrap();
    let error = DeviceError::Full { wanted: 401, used: 600, budget: 1000 };
    assert_eq!(device.allocate(401).err(), Some(error));
    drop(first);
    assert!(device.allocate(1000).is_ok());
}
