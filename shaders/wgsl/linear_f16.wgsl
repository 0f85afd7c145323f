// y = x·wᵀ for many rows of x; w holds two f16 a word, sums are f32. A workgroup makes 64 × 64 outputs from 16 columns of
// x and w at a time, which lie in workgroup memory, rows PITCH apart against bank conflicts; a thread owns every eighth
// row and column of the 64. Twin: cpu/linear_f16.rs, `linear_f16`.
struct Params { n: u32, out: u32, k4: u32, first: u32 } // k4: columns of x and w, in fours; the first tile

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u;
var<workgroup> sh_x: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, TILE * PITCH>;

fn store(row: u32, column: u32, near: vec4<f32>, far: vec4<f32>) {
    for (var j = 0u; j < 8u && row < params.n && column + j * 8u < params.out; j += 1u) {
        y[row * params.out + column + j * 8u] = select(near[j % 4u], far[j % 4u], j >= 4u);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tiles = (params.n + TILE - 1u) / TILE;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share rows of w
    let first_row = tile % tiles * TILE;
    let first_column = tile / tiles * TILE;
    let row = local.x / 8u;
    let column = local.x % 8u;
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
    for (var k = 0u; k < params.k4; k += DEPTH) {
        for (var i = local.x; i < TILE * DEPTH; i += WG) {
            let at = k + i % DEPTH;
            let x_row = first_row + i / DEPTH;
            let w_row = first_column + i / DEPTH;
            var four = vec4<f32>();
            if (at < params.k4 && x_row < params.n) {
                four = x[x_row * params.k4 + at];
            }
            var packed = vec2<u32>();
            if (at < params.k4 && w_row < params.out) {
                packed = w[w_row * params.k4 + at];
            }
            sh_x[i / DEPTH * PITCH + i % DEPTH] = four;
            sh_w[i / DEPTH * PITCH + i % DEPTH] = vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
        }
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
    store(first_row + row + 0u, first_column + column, near0, far0);
    store(first_row + row + 8u, first_column + column, near1, far1);
    store(first_row + row + 16u, first_column + column, near2, far2);
    store(first_row + row + 24u, first_column + column, near3, far3);
    store(first_row + row + 32u, first_column + column, near4, far4);
    store(first_row + row + 40u, first_column + column, near5, far5);
    store(first_row + row + 48u, first_column + column, near6, far6);
    store(first_row + row + 56u, first_column + column, near7, far7);
}
