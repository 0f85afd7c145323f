// y = x·wᵀ for few rows of x; w holds NF4 in blocks of 64 columns and is read 16 bytes, half a block, a thread.
// LANES neighbouring threads share four rows of w; a workgroup makes ROWS outputs of one row of x.
// Twin: cpu/linear_nf4.rs, `linear_nf4`.
struct Params { n: u32, out: u32, blocks: u32, offset: f32 } // blocks of a row; offset of every block's scale

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>; // 256 values of absmax codes, then one absmax per 256 blocks
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 8u;
const ROWS: u32 = WG / LANES * 4u;
var<workgroup> sh_nf4: array<f32, 16>;
var<workgroup> sh_sum: array<vec4<f32>, WG>;

fn scale(block: u32) -> f32 {
    let code = (absmax[block / 4u] >> (block % 4u * 8u)) & 255u;
    return nested[code] * nested[256u + block / 256u] + params.offset;
}

// Numbers by the four-bit codes of a word that begin at `bits`.
fn dequantized(word: u32, bits: vec4<u32>) -> vec4<f32> {
    let code = (vec4<u32>(word) >> bits) & vec4<u32>(15u);
    return vec4<f32>(sh_nf4[code.x], sh_nf4[code.y], sh_nf4[code.z], sh_nf4[code.w]);
}

fn product(word: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    // The high half of a byte comes first.
    return dot(dequantized(word, vec4<u32>(4u, 0u, 12u, 8u)), low) + dot(dequantized(word, vec4<u32>(20u, 16u, 28u, 24u)), high);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    if (local.x == 0u) {
        sh_nf4 = array<f32, 16>(
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        );
    }
    workgroupBarrier();
    let outputs = (params.out + ROWS - 1u) / ROWS;
    let part = group.y * groups.x + group.x;
    let row = min(part / outputs, params.n - 1u);
    let first = part % outputs * ROWS; // of the outputs
    let last = params.out - 1u;
    let own = first + local.x / LANES * 4u;
    let at0 = min(own, last) * params.blocks;
    let at1 = min(own + 1u, last) * params.blocks;
    let at2 = min(own + 2u, last) * params.blocks;
    let at3 = min(own + 3u, last) * params.blocks;
    var sums = vec4<f32>();
    for (var k = local.x % LANES; k < params.blocks * 2u; k += LANES) {
        var codes0 = codes[at0 * 2u + k];
        var codes1 = codes[at1 * 2u + k];
        var codes2 = codes[at2 * 2u + k];
        var codes3 = codes[at3 * 2u + k];
        var products = vec4<f32>();
        for (var word = 0u; word < 4u; word += 1u) {
            let at = (row * params.blocks * 2u + k) * 8u + word * 2u;
            let low = x[at];
            let high = x[at + 1u];
            products += vec4<f32>(
                product(codes0.x, low, high), product(codes1.x, low, high),
                product(codes2.x, low, high), product(codes3.x, low, high),
            );
            codes0 = codes0.yzwx;
            codes1 = codes1.yzwx;
            codes2 = codes2.yzwx;
            codes3 = codes3.yzwx;
        }
        let block = k / 2u;
        sums += products * vec4<f32>(scale(at0 + block), scale(at1 + block), scale(at2 + block), scale(at3 + block));
    }
    sh_sum[local.x] = sums;
    workgroupBarrier();
    if (part >= outputs * params.n || local.x >= ROWS || first + local.x >= params.out) {
        return;
    }
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane += 1u) {
        sum += sh_sum[local.x / 4u * LANES + lane][local.x % 4u];
    }
    y[row * params.out + first + local.x] = sum;
}
