// y = x·wᵀ for many rows of x; w holds NF4 in blocks of 64 columns, sums are f32. A workgroup makes 64 × 64 outputs from
// 16 columns of x and w at a time, eight of each half of a block, so that a thread reads its half of a row's block at
// once and takes one word a step. Workgroup memory and outputs as in linear_f16.
// Twin: cpu/linear_nf4.rs, `linear_nf4`.
struct Params { n: u32, out: u32, blocks: u32, offset: f32 } // blocks of a row; offset of every block's scale

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>; // 256 values of absmax codes, then one absmax per 256 blocks
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u;
var<workgroup> sh_nf4: array<f32, 16>;
var<workgroup> sh_x: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, TILE * PITCH>;

fn scale(block: u32) -> f32 {
    let code = (absmax[block / 4u] >> (block % 4u * 8u)) & 255u;
    return nested[code] * nested[256u + block / 256u] + params.offset;
}

// Numbers by the four-bit codes of a word that begin at `bits`.
fn dequantized(word: u32, bits: vec4<u32>) -> vec4<f32> {
    let code = (vec4<u32>(word) >> bits) & vec4<u32>(15u);
    return vec4<f32>(sh_nf4[code.x], sh_nf4[code.y], sh_nf4[code.z], sh_nf4[code.w]);
}

fn store(row: u32, column: u32, near: vec4<f32>, far: vec4<f32>) {
    for (var j = 0u; j < 8u && row < params.n && column + j * 8u < params.out; j += 1u) {
        y[row * params.out + column + j * 8u] = select(near[j % 4u], far[j % 4u], j >= 4u);
    }
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
    let tiles = (params.n + TILE - 1u) / TILE;
    let tile = group.y * groups.x + group.x; // neighbours share rows of w
    let first_row = tile % tiles * TILE;
    let first_column = tile / tiles * TILE;
    let row = local.x / 8u;
    let column = local.x % 8u;
    // The thread de-quantises half a block of two rows of w; rows beyond the last repeat it and are never stored.
    let half = local.x % 2u;
    let upper = min(first_column + local.x / 2u, params.out - 1u) * params.blocks;
    let lower = min(first_column + local.x / 2u + 32u, params.out - 1u) * params.blocks;
    let w_at = local.x / 2u * PITCH + half * 2u;
    // Outputs of row + 8·i: near at columns + 0, 8, 16, 24; far at columns + 32, 40, 48, 56.
    var near0 = vec4<f32>();
    var far0 = vec4<f32>();
    var near1 = vec4<f32>();
    var far1 = vec4<f32>();
    var near2 = vec4<f32>();
    var far2 = vec4<f32>();
    var near3 = vec4<f32>();
    var far3 = vec4<f32>();
    var near4 = vec4<f32>();
    var far4 = vec4<f32>();
    var near5 = vec4<f32>();
    var far5 = vec4<f32>();
    var near6 = vec4<f32>();
    var far6 = vec4<f32>();
    var near7 = vec4<f32>();
    var far7 = vec4<f32>();
    for (var block = 0u; block < params.blocks; block += 1u) {
        var upper_codes = codes[(upper + block) * 2u + half];
        var lower_codes = codes[(lower + block) * 2u + half];
        let upper_scale = scale(upper + block);
        let lower_scale = scale(lower + block);
        for (var step = 0u; step < 4u; step += 1u) {
            for (var i = local.x; i < TILE * DEPTH; i += WG) {
                let c = i % DEPTH;
                let x_row = first_row + i / DEPTH;
                var four = vec4<f32>();
                if (x_row < params.n) {
                    four = x[(x_row * params.blocks + block) * 16u + c / 2u * 8u + step * 2u + c % 2u];
                }
                sh_x[i / DEPTH * PITCH + c] = four;
            }
            let early = vec4<u32>(4u, 0u, 12u, 8u); // the high half of a byte comes first
            let late = vec4<u32>(20u, 16u, 28u, 24u);
            sh_w[w_at] = dequantized(upper_codes.x, early) * upper_scale;
            sh_w[w_at + 1u] = dequantized(upper_codes.x, late) * upper_scale;
            sh_w[w_at + 32u * PITCH] = dequantized(lower_codes.x, early) * lower_scale;
            sh_w[w_at + 32u * PITCH + 1u] = dequantized(lower_codes.x, late) * lower_scale;
            upper_codes = upper_codes.yzwx;
            lower_codes = lower_codes.yzwx;
            workgroupBarrier();
            for (var c = 0u; c < DEPTH; c += 1u) {
                let w_at = column * PITCH + c;
                let x_at = row * PITCH + c;
                let near = mat4x4<f32>(sh_w[w_at], sh_w[w_at + 8u * PITCH], sh_w[w_at + 16u * PITCH], sh_w[w_at + 24u * PITCH]);
                let far = mat4x4<f32>(sh_w[w_at + 32u * PITCH], sh_w[w_at + 40u * PITCH], sh_w[w_at + 48u * PITCH], sh_w[w_at + 56u * PITCH]);
                let x0 = sh_x[x_at];
                near0 += x0 * near;
                far0 += x0 * far;
                let x1 = sh_x[x_at + 8u * PITCH];
                near1 += x1 * near;
                far1 += x1 * far;
                let x2 = sh_x[x_at + 16u * PITCH];
                near2 += x2 * near;
                far2 += x2 * far;
                let x3 = sh_x[x_at + 24u * PITCH];
                near3 += x3 * near;
                far3 += x3 * far;
                let x4 = sh_x[x_at + 32u * PITCH];
                near4 += x4 * near;
                far4 += x4 * far;
                let x5 = sh_x[x_at + 40u * PITCH];
                near5 += x5 * near;
                far5 += x5 * far;
                let x6 = sh_x[x_at + 48u * PITCH];
                near6 += x6 * near;
                far6 += x6 * far;
                let x7 = sh_x[x_at + 56u * PITCH];
                near7 += x7 * near;
                far7 += x7 * far;
            }
            workgroupBarrier();
        }
    }
    store(first_row + row + 0u, first_column + column, near0, far0);
    store(first_row + row + 8u, first_column + column, near1, far1);
    store(first_row + row + 16u, first_column + column, near2, far2);
    store(first_row + row + 24u, first_column + column, near3, far3);
    store(first_row + row + 32u, first_column + column, near4, far4);
    store(first_row + row + 40u, first_column + column, near5, far5);
    store(first_row + row + 48u, first_column + column, near6, far6);
    store(first_row + row + 56u, first_column + column, near7, far7);
}
