// dx = dy·w, the gradient of linear_f16 by x; w holds two f16 a word, sums are f32. A workgroup makes 64 × 64 outputs from
// 16 columns of dy and rows of w at a time, which lie in workgroup memory, rows apart against bank conflicts; a thread
// owns every eighth row of the 64, and of those eight columns in two fours. Twin: cpu/linear_f16.rs, `linear_f16_dx`.
struct Params { n: u32, out: u32, k8: u32, first: u32 } // k8: columns of dx and w, in eights; the first tile

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u; // of rows of dy
const W_PITCH: u32 = 17u;
var<workgroup> sh_dy: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, DEPTH * 4u * W_PITCH>;

fn store(row: u32, fours: u32, near: vec4<f32>, far: vec4<f32>) {
    if (row < params.n && fours < params.k8 * 2u) {
        dx[row * params.k8 * 2u + fours] = near;
    }
    if (row < params.n && fours + 8u < params.k8 * 2u) {
        dx[row * params.k8 * 2u + fours + 8u] = far;
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tiles = (params.n + TILE - 1u) / TILE;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share columns of w
    let first_row = tile % tiles * TILE;
    let first_column = tile / tiles * TILE;
    let row = local.x / 8u;
    let column = local.x % 8u;
    let last = params.out - 1u;
    // Columns beyond the last repeat it and are never stored.
    let w_column = min(first_column / 8u + column, params.k8 - 1u);
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
        for (var i = row; i < DEPTH * 4u; i += WG / 8u) {
            let eight = select(vec4<u32>(), w[min(k + i, last) * params.k8 + w_column], k + i <= last);
            sh_w[i * W_PITCH + column * 2u] = vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y));
            sh_w[i * W_PITCH + column * 2u + 1u] = vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w));
        }
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
    store(first_row + row + 0u, first_column / 4u + column, near0, far0);
    store(first_row + row + 8u, first_column / 4u + column, near1, far1);
    store(first_row + row + 16u, first_column / 4u + column, near2, far2);
    store(first_row + row + 24u, first_column / 4u + column, near3, far3);
    store(first_row + row + 32u, first_column / 4u + column, near4, far4);
    store(first_row + row + 40u, first_column / 4u + column, near5, far5);
    store(first_row + row + 48u, first_column / 4u + column, near6, far6);
    store(first_row + row + 56u, first_column / 4u + column, near7, far7);
}
