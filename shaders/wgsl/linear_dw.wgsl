// dw = dyᵀ·x. A workgroup makes 64 × 64 outputs from 16 rows of dy and x at a time, which lie in workgroup memory; a thread
// owns eight rows of the 64 and eight columns, each in two fours 32 apart. Twin: cpu/linear.rs, `linear_dw`.
struct Params { n: u32, out4: u32, k4: u32, first: u32, add: u32, unused0: u32, unused1: u32, unused2: u32 } // columns of dy and of x, in fours; the first tile; whether to add to dw

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const FOURS: u32 = 16u; // of a tile's 64 columns
const DEPTH: u32 = 16u;
const PITCH: u32 = 17u;
var<workgroup> sh_dy: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> sh_x: array<vec4<f32>, DEPTH * PITCH>;

fn add(sums: ptr<function, array<vec4<f32>, 8>>, low: vec4<f32>, high: vec4<f32>, row: vec4<f32>) {
    (*sums)[0] += low.x * row;
    (*sums)[1] += low.y * row;
    (*sums)[2] += low.z * row;
    (*sums)[3] += low.w * row;
    (*sums)[4] += high.x * row;
    (*sums)[5] += high.y * row;
    (*sums)[6] += high.z * row;
    (*sums)[7] += high.w * row;
}

fn store(row: u32, fours: u32, near: vec4<f32>, far: vec4<f32>) {
    if (row < 4u * params.out4 && fours < params.k4) {
        let at = row * params.k4 + fours;
        dw[at] = near + select(vec4<f32>(), dw[at], params.add == 1u);
    }
    if (row < 4u * params.out4 && fours + 8u < params.k4) {
        let at = row * params.k4 + fours + 8u;
        dw[at] = far + select(vec4<f32>(), dw[at], params.add == 1u);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tiles = (params.k4 + FOURS - 1u) / FOURS;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share columns of dy
    let first_column = tile % tiles * FOURS; // of x, in fours
    let first_row = tile / tiles * FOURS;
    let row = local.x / 8u;
    let column = local.x % 8u;
    // Outputs of rows 4·row to 4·row + 3 and those 32 after them: near at four columns, far at those 32 after them.
    var near: array<vec4<f32>, 8>;
    var far: array<vec4<f32>, 8>;
    for (var k = 0u; k < params.n; k += DEPTH) {
        for (var i = local.x; i < DEPTH * FOURS; i += WG) {
            let at = min(k + i / FOURS, params.n - 1u);
            let inside = k + i / FOURS < params.n;
            sh_dy[i / FOURS * PITCH + i % FOURS] = dy[at * params.out4 + min(first_row + i % FOURS, params.out4 - 1u)];
            sh_x[i / FOURS * PITCH + i % FOURS] = select(vec4<f32>(), x[at * params.k4 + min(first_column + i % FOURS, params.k4 - 1u)], inside);
        }
        workgroupBarrier();
        for (var c = 0u; c < DEPTH; c += 1u) {
            let low = sh_dy[c * PITCH + row];
            let high = sh_dy[c * PITCH + row + 8u];
            add(&near, low, high, sh_x[c * PITCH + column]);
            add(&far, low, high, sh_x[c * PITCH + column + 8u]);
        }
        workgroupBarrier();
    }
    store(4u * (first_row + row) + 0u, first_column + column, near[0], far[0]);
    store(4u * (first_row + row) + 1u, first_column + column, near[1], far[1]);
    store(4u * (first_row + row) + 2u, first_column + column, near[2], far[2]);
    store(4u * (first_row + row) + 3u, first_column + column, near[3], far[3]);
    store(4u * (first_row + row) + 32u, first_column + column, near[4], far[4]);
    store(4u * (first_row + row) + 33u, first_column + column, near[5], far[5]);
    store(4u * (first_row + row) + 34u, first_column + column, near[6], far[6]);
    store(4u * (first_row + row) + 35u, first_column + column, near[7], far[7]);
}
