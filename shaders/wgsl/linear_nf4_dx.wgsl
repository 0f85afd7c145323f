// dx = dy·w, the gradient of linear_nf4 by x; sums are f32. A workgroup makes 64 × 64 outputs, as wide as a block of w, from
// 16 columns of dy and rows of w at a time, which lie in workgroup memory, rows apart against bank conflicts; a thread
// owns every eighth row of the 64, and of those eight columns in two fours. Twin: cpu/linear_nf4.rs, `linear_nf4_dx`.
struct Params { n: u32, out: u32, blocks: u32, offset: f32 } // blocks of a row of w; offset of every block's scale

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> codes: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>; // 256 values of absmax codes, then one absmax per 256 blocks
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u; // of rows of dy
const W_PITCH: u32 = 17u;
var<workgroup> sh_nf4: array<f32, 16>;
var<workgroup> sh_dy: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, DEPTH * 4u * W_PITCH>;

fn scale(block: u32) -> f32 {
    let code = (absmax[block / 4u] >> (block % 4u * 8u)) & 255u;
    return nested[code] * nested[256u + block / 256u] + params.offset;
}

// Numbers by the four-bit codes of a word that begin at `bits`.
fn dequantized(word: u32, bits: vec4<u32>) -> vec4<f32> {
    let code = (vec4<u32>(word) >> bits) & vec4<u32>(15u);
    return vec4<f32>(sh_nf4[code.x], sh_nf4[code.y], sh_nf4[code.z], sh_nf4[code.w]);
}

fn store(row: u32, fours: u32, near: vec4<f32>, far: vec4<f32>) {
    if (row < params.n && fours < params.blocks * 16u) {
        dx[row * params.blocks * 16u + fours] = near;
        dx[row * params.blocks * 16u + fours + 8u] = far;
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
    let tile = group.y * groups.x + group.x; // neighbours share columns of w
    let first_row = tile % tiles * TILE;
    let block = tile / tiles;
    let row = local.x / 8u;
    let column = local.x % 8u;
    let last = params.out - 1u;
    // Outputs of row + 8·i: near at four columns, far at those 32 after them.
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
    for (var k = 0u; k < params.out; k += DEPTH * 4u) {
        for (var i = local.x; i < TILE * DEPTH; i += WG) {
            let at = min(first_row + i / DEPTH, params.n - 1u) * params.out;
            let o = k + i % DEPTH * 4u;
            sh_dy[i / DEPTH * PITCH + i % DEPTH] = vec4<f32>(
                dy[at + min(o, last)], dy[at + min(o + 1u, last)], dy[at + min(o + 2u, last)], dy[at + min(o + 3u, last)],
            );
        }
        let w_row = k + local.x / 4u;
        let w_block = min(w_row, last) * params.blocks + min(block, params.blocks - 1u);
        let factor = select(0.0, scale(w_block), w_row <= last);
        let words = codes[w_block * 4u + local.x % 4u];
        let early = vec4<u32>(4u, 0u, 12u, 8u); // the high half of a byte comes first
        let late = vec4<u32>(20u, 16u, 28u, 24u);
        let own = local.x / 4u * W_PITCH + local.x % 4u * 4u;
        sh_w[own] = dequantized(words.x, early) * factor;
        sh_w[own + 1u] = dequantized(words.x, late) * factor;
        sh_w[own + 2u] = dequantized(words.y, early) * factor;
        sh_w[own + 3u] = dequantized(words.y, late) * factor;
        workgroupBarrier();
        for (var c = 0u; c < DEPTH; c += 1u) {
            let w_at = c * 4u * W_PITCH + column;
            let dy_at = row * PITCH + c;
            let near = mat4x4<f32>(sh_w[w_at], sh_w[w_at + W_PITCH], sh_w[w_at + 2u * W_PITCH], sh_w[w_at + 3u * W_PITCH]);
            let far = mat4x4<f32>(sh_w[w_at + 8u], sh_w[w_at + W_PITCH + 8u], sh_w[w_at + 2u * W_PITCH + 8u], sh_w[w_at + 3u * W_PITCH + 8u]);
            let dy0 = sh_dy[dy_at];
            near0 += near * dy0;
            far0 += far * dy0;
            let dy1 = sh_dy[dy_at + 8u * PITCH];
            near1 += near * dy1;
            far1 += far * dy1;
            let dy2 = sh_dy[dy_at + 16u * PITCH];
            near2 += near * dy2;
            far2 += far * dy2;
            let dy3 = sh_dy[dy_at + 24u * PITCH];
            near3 += near * dy3;
            far3 += far * dy3;
            let dy4 = sh_dy[dy_at + 32u * PITCH];
            near4 += near * dy4;
            far4 += far * dy4;
            let dy5 = sh_dy[dy_at + 40u * PITCH];
            near5 += near * dy5;
            far5 += far * dy5;
            let dy6 = sh_dy[dy_at + 48u * PITCH];
            near6 += near * dy6;
            far6 += far * dy6;
            let dy7 = sh_dy[dy_at + 56u * PITCH];
            near7 += near * dy7;
            far7 += far * dy7;
        }
        workgroupBarrier();
    }
    store(first_row + row + 0u, block * 16u + column, near0, far0);
    store(first_row + row + 8u, block * 16u + column, near1, far1);
    store(first_row + row + 16u, block * 16u + column, near2, far2);
    store(first_row + row + 24u, block * 16u + column, near3, far3);
    store(first_row + row + 32u, block * 16u + column, near4, far4);
    store(first_row + row + 40u, block * 16u + column, near5, far5);
    store(first_row + row + 48u, block * 16u + column, near6, far6);
    store(first_row + row + 56u, block * 16u + column, near7, far7);
}
