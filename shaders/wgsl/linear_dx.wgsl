// dx = dy·w. A workgroup makes 64 × 64 outputs from 16 columns of dy and rows of w at a time, which lie in workgroup memory,
// rows apart against bank conflicts; a thread owns every eighth row of the 64, and of those eight columns in two fours.
// Twin: cpu/linear.rs, `linear_dx`.
struct Params { n: u32, out4: u32, k4: u32, first: u32 } // columns of dy and of w, in fours; the first tile

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const TILE: u32 = 64u;
const DEPTH: u32 = 4u;
const PITCH: u32 = 5u; // of rows of dy
const W_PITCH: u32 = 17u;
var<workgroup> sh_dy: array<vec4<f32>, TILE * PITCH>;
var<workgroup> sh_w: array<vec4<f32>, DEPTH * 4u * W_PITCH>;

// Four columns of dy by four rows of w, for every eighth row of dy from `at` on.
fn add(sums: ptr<function, array<vec4<f32>, 8>>, at: u32, w: mat4x4<f32>) {
    (*sums)[0] += w * sh_dy[at];
    (*sums)[1] += w * sh_dy[at + 8u * PITCH];
    (*sums)[2] += w * sh_dy[at + 16u * PITCH];
    (*sums)[3] += w * sh_dy[at + 24u * PITCH];
    (*sums)[4] += w * sh_dy[at + 32u * PITCH];
    (*sums)[5] += w * sh_dy[at + 40u * PITCH];
    (*sums)[6] += w * sh_dy[at + 48u * PITCH];
    (*sums)[7] += w * sh_dy[at + 56u * PITCH];
}

fn rows_of_w(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(sh_w[at], sh_w[at + W_PITCH], sh_w[at + 2u * W_PITCH], sh_w[at + 3u * W_PITCH]);
}

fn store(row: u32, fours: u32, near: vec4<f32>, far: vec4<f32>) {
    if (row < params.n && fours < params.k4) {
        dx[row * params.k4 + fours] = near;
    }
    if (row < params.n && fours + 8u < params.k4) {
        dx[row * params.k4 + fours + 8u] = far;
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tiles = (params.n + TILE - 1u) / TILE;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share columns of w
    let first_row = tile % tiles * TILE;
    let first_four = tile / tiles * TILE / 4u;
    let row = local.x / 8u;
    let column = local.x % 8u;
    // Outputs of row + 8·i: near at four columns, far at those 32 after them.
    var near: array<vec4<f32>, 8>;
    var far: array<vec4<f32>, 8>;
    for (var j = 0u; j < params.out4; j += DEPTH) {
        for (var i = local.x; i < TILE * DEPTH; i += WG) {
            let dy_row = min(first_row + i / DEPTH, params.n - 1u);
            sh_dy[i / DEPTH * PITCH + i % DEPTH] = dy[dy_row * params.out4 + min(j + i % DEPTH, params.out4 - 1u)];
            let w_row = 4u * j + i / 16u;
            let at = min(w_row, 4u * params.out4 - 1u) * params.k4 + min(first_four + i % 16u, params.k4 - 1u);
            sh_w[i / 16u * W_PITCH + i % 16u] = select(vec4<f32>(), w[at], w_row < 4u * params.out4);
        }
        workgroupBarrier();
        for (var c = 0u; c < DEPTH; c += 1u) {
            add(&near, row * PITCH + c, rows_of_w(c * 4u * W_PITCH + column));
            add(&far, row * PITCH + c, rows_of_w(c * 4u * W_PITCH + column + 8u));
        }
        workgroupBarrier();
    }
    store(first_row + row + 0u, first_four + column, near[0], far[0]);
    store(first_row + row + 8u, first_four + column, near[1], far[1]);
    store(first_row + row + 16u, first_four + column, near[2], far[2]);
    store(first_row + row + 24u, first_four + column, near[3], far[3]);
    store(first_row + row + 32u, first_four + column, near[4], far[4]);
    store(first_row + row + 40u, first_four + column, near[5], far[5]);
    store(first_row + row + 48u, first_four + column, near[6], far[6]);
    store(first_row + row + 56u, first_four + column, near[7], far[7]);
}
