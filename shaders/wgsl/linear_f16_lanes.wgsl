// y = x·wᵀ where a subgroup has eight lanes; w holds two f16 a word, sums are f32; see linear_lanes.wgsl.
// Twin: cpu/linear_f16.rs, `linear_f16`.
struct Params { n: u32, out: u32, k4: u32, first: u32 } // k4: columns of x and w, in fours; the first tile

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

fn unpacked(four: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(four.x), unpack2x16float(four.y));
}

// Rows 0..8 of a block of outputs; element j of a row is column l + 8·j.
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

fn add_four(sums: ptr<function, array<vec4<f32>, 8>>, columns: vec4<f32>, rows: mat4x4<f32>) {
    add_outer(sums, columns.x, rows[0]);
    add_outer(sums, columns.y, rows[1]);
    add_outer(sums, columns.z, rows[2]);
    add_outer(sums, columns.w, rows[3]);
}

fn store(sums: ptr<function, array<vec4<f32>, 8>>, first_row: u32, column: u32) {
    for (var i = 0u; i < 8u; i += 1u) {
        let row = first_row + i;
        let at = row * params.out + column;
        let four = (*sums)[i];
        if (row < params.n && column < params.out) {
            y[at] = four.x;
        }
        if (row < params.n && column + 8u < params.out) {
            y[at + 8u] = four.y;
        }
        if (row < params.n && column + 16u < params.out) {
            y[at + 16u] = four.z;
        }
        if (row < params.n && column + 24u < params.out) {
            y[at + 24u] = four.w;
        }
    }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.n + 31u) / 32u;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share rows of w
    let first_row = tile % tiles * 32u;
    let first_column = tile / tiles * 32u;
    // Rows beyond the last are read as the last, and not stored.
    let row = first_row + lane;
    let column = first_column + lane;
    let x0 = min(row, params.n - 1u) * params.k4;
    let x1 = min(row + 8u, params.n - 1u) * params.k4;
    let x2 = min(row + 16u, params.n - 1u) * params.k4;
    let x3 = min(row + 24u, params.n - 1u) * params.k4;
    let w0 = min(column, params.out - 1u) * params.k4;
    let w1 = min(column + 8u, params.out - 1u) * params.k4;
    let w2 = min(column + 16u, params.out - 1u) * params.k4;
    let w3 = min(column + 24u, params.out - 1u) * params.k4;
    var sums0: array<vec4<f32>, 8>;
    var sums1: array<vec4<f32>, 8>;
    var sums2: array<vec4<f32>, 8>;
    var sums3: array<vec4<f32>, 8>;
    for (var k = 0u; k < params.k4; k += 1u) {
        let columns0 = x[x0 + k];
        let columns1 = x[x1 + k];
        let columns2 = x[x2 + k];
        let columns3 = x[x3 + k];
        let rows = transpose(mat4x4<f32>(unpacked(w[w0 + k]), unpacked(w[w1 + k]), unpacked(w[w2 + k]), unpacked(w[w3 + k])));
        add_four(&sums0, columns0, rows);
        add_four(&sums1, columns1, rows);
        add_four(&sums2, columns2, rows);
        add_four(&sums3, columns3, rows);
    }
    store(&sums0, first_row, column);
    store(&sums1, first_row + 8u, column);
    store(&sums2, first_row + 16u, column);
    store(&sums3, first_row + 24u, column);
}
