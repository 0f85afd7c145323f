// y = x·wᵀ. A workgroup makes 64 × 64 outputs from 16 columns of x and w at a time, which lie in workgroup memory, rows
// PITCH apart against bank conflicts; a thread owns every eighth row and column of the 64. Twin: cpu/linear.rs, `linear`.
struct Params { n: u32, out: u32, k4: u32, first: u32 } // k4: columns of x and w, in fours; the first tile

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u;
var<workgroup> sh_x: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, TILE * PITCH>;

// Four columns of x by four rows of w, for every eighth row of x from `at` on.
fn add(sums: ptr<function, array<vec4<f32>, 8>>, at: u32, w: mat4x4<f32>) {
    (*sums)[0] += sh_x[at] * w;
    (*sums)[1] += sh_x[at + 8u * PITCH] * w;
    (*sums)[2] += sh_x[at + 16u * PITCH] * w;
    (*sums)[3] += sh_x[at + 24u * PITCH] * w;
    (*sums)[4] += sh_x[at + 32u * PITCH] * w;
    (*sums)[5] += sh_x[at + 40u * PITCH] * w;
    (*sums)[6] += sh_x[at + 48u * PITCH] * w;
    (*sums)[7] += sh_x[at + 56u * PITCH] * w;
}

fn rows_of_w(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(sh_w[at], sh_w[at + 8u * PITCH], sh_w[at + 16u * PITCH], sh_w[at + 24u * PITCH]);
}

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
    var near: array<vec4<f32>, 8>;
    var far: array<vec4<f32>, 8>;
    for (var k = 0u; k < params.k4; k += DEPTH) {
        for (var i = local.x; i < TILE * DEPTH; i += WG) {
            let at = min(k + i % DEPTH, params.k4 - 1u);
            let x_row = min(first_row + i / DEPTH, params.n - 1u);
            let w_row = min(first_column + i / DEPTH, params.out - 1u);
            sh_x[i / DEPTH * PITCH + i % DEPTH] = x[x_row * params.k4 + at];
            sh_w[i / DEPTH * PITCH + i % DEPTH] = select(vec4<f32>(), w[w_row * params.k4 + at], k + i % DEPTH < params.k4);
        }
        workgroupBarrier();
        for (var c = 0u; c < DEPTH; c += 1u) {
            add(&near, row * PITCH + c, rows_of_w(column * PITCH + c));
            add(&far, row * PITCH + c, rows_of_w((column + 32u) * PITCH + c));
        }
        workgroupBarrier();
    }
    store(first_row + row + 0u, first_column + column, near[0], far[0]);
    store(first_row + row + 8u, first_column + column, near[1], far[1]);
    store(first_row + row + 16u, first_column + column, near[2], far[2]);
    store(first_row + row + 24u, first_column + column, near[3], far[3]);
    store(first_row + row + 32u, first_column + column, near[4], far[4]);
    store(first_row + row + 40u, first_column + column, near[5], far[5]);
    store(first_row + row + 48u, first_column + column, near[6], far[6]);
    store(first_row + row + 56u, first_column + column, near[7], far[7]);
}
