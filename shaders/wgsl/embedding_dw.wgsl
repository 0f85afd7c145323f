// sum[ids[i] − first] += dy[i] for every i whose row the block of the table has. One workgroup a row of dy: it looks at
// all ids, and where its own is the first of its kind, it adds the rows of dy that have that id, in their order; threads
// stride over vectors of four columns. d is a multiple of 4. Twin: cpu/embedding.rs, `embedding_dw`.
struct Params { n: u32, d: u32, rows: u32, first: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> sum: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const BITS: u32 = 32u;
var<workgroup> sh_same: array<u32, WG>; // a bit for every id that is the same

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = group.y * groups.x + group.x;
    let id = ids[min(i, params.n - 1u)];
    let row = u32(id) - params.first; // below the first it wraps: beyond the last
    let d = params.d / 4u;
    var first_of_kind = i < params.n && row < params.rows;
    for (var start = 0u; start < params.n; start += WG * BITS) {
        let own = start + local * BITS;
        var same = 0u;
        for (var bit = 0u; bit < BITS && own + bit < params.n; bit += 1u) {
            same |= u32(ids[own + bit] == id) << bit;
        }
        sh_same[local] = same;
        workgroupBarrier();
        let words = min(WG, (params.n - start + BITS - 1u) / BITS);
        for (var word = 0u; word < words && first_of_kind; word += 1u) {
            let found = sh_same[word];
            if (found == 0u) {
                continue;
            }
            let base = start + word * BITS;
            first_of_kind = base + firstTrailingBit(found) >= i;
            if (!first_of_kind) {
                break;
            }
            for (var column = local; column < d; column += WG) {
                var total = sum[row * d + column];
                for (var rest = found; rest != 0u; rest &= rest - 1u) {
                    total += dy[(base + firstTrailingBit(rest)) * d + column];
                }
                sum[row * d + column] = total;
            }
        }
        workgroupBarrier();
    }
}
