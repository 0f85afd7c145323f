// dw = dyᵀ·x where a subgroup has eight lanes; see linear_lanes.wgsl. A workgroup makes 32 × 32 outputs; for every row of dy
// and x, lane l reads four neighbouring columns of each: columns 4·l to 4·l + 3 of dy are rows of the outputs, those of x
// their columns. Twin: cpu/linear.rs, `linear_dw`.
struct Params { n: u32, out4: u32, k4: u32, first: u32, add: u32, unused0: u32, unused1: u32, unused2: u32 } // columns of dy and of x, in fours; the first tile; whether to add to dw

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

// Every fourth row of a block of outputs.
fn add_outer(sums: ptr<function, array<vec4<f32>, 8>>, column: f32, row: vec4<f32>) {
    (*sums)[0] += subgroupBroadcast(column, 0u) * row;
    (*sums)[1] += subgroupBroadcast(column, 1u) * row;
    (*sums)[2] += subgroupBroadcast(column, 2u) * row;
    (*sums)[3] += subgroupBroadcast(column, 3u) * row;
    (*sums)[4] += subgroupBroadcast(column, 4u) * row;
    (*sums)[5] += subgroupBroadcast(column, 5u) * row;
    (*sums)[6] += subgroupBroadcast(column, 6u) * row;
    (*sums)[7] += subgroupBroadcast(column, 7u) * row;
}

fn add_two(sums: ptr<function, array<vec4<f32>, 8>>, column0: f32, row0: vec4<f32>, column1: f32, row1: vec4<f32>) {
    add_outer(sums, column0, row0);
    add_outer(sums, column1, row1);
}

fn store(sums: ptr<function, array<vec4<f32>, 8>>, first_row: u32, column: u32) {
    for (var i = 0u; i < 8u; i += 1u) {
        let row = first_row + 4u * i;
        if (row < 4u * params.out4 && column < params.k4) {
            let at = row * params.k4 + column;
            if (params.add == 1u) {
                dw[at] += (*sums)[i];
            } else {
                dw[at] = (*sums)[i];
            }
        }
    }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.k4 + 7u) / 8u;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share columns of dy
    let column = tile % tiles * 8u + lane;
    let row = tile / tiles * 8u + lane;
    // Columns beyond the last are read as the last, and not stored.
    var x_at = min(column, params.k4 - 1u);
    var dy_at = min(row, params.out4 - 1u);
    var sums0: array<vec4<f32>, 8>;
    var sums1: array<vec4<f32>, 8>;
    var sums2: array<vec4<f32>, 8>;
    var sums3: array<vec4<f32>, 8>;
    let even = params.n / 2u;
    for (var i = 0u; i < even; i += 1u) {
        let columns0 = dy[dy_at];
        let columns1 = dy[dy_at + params.out4];
        let row0 = x[x_at];
        let row1 = x[x_at + params.k4];
        add_two(&sums0, columns0.x, row0, columns1.x, row1);
        add_two(&sums1, columns0.y, row0, columns1.y, row1);
        add_two(&sums2, columns0.z, row0, columns1.z, row1);
        add_two(&sums3, columns0.w, row0, columns1.w, row1);
        dy_at += 2u * params.out4;
        x_at += 2u * params.k4;
    }
    if (params.n % 2u == 1u) {
        let columns = dy[dy_at];
        let row = x[x_at];
        add_outer(&sums0, columns.x, row);
        add_outer(&sums1, columns.y, row);
        add_outer(&sums2, columns.z, row);
        add_outer(&sums3, columns.w, row);
    }
    let first_row = tile / tiles * 32u;
    store(&sums0, first_row, column);
    store(&sums1, first_row + 1u, column);
    store(&sums2, first_row + 2u, column);
    store(&sums3, first_row + 3u, column);
}
