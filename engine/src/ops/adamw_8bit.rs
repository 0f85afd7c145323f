//! AdamW with moments of 8 bits on a graphics device: one launch, in place. On the CPU see
//! [`adamw8`](super::quant::adamw8::adamw8).

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::ADAMW_8BIT;

use super::adamw::AdamW;
use super::launch::{launch, words};
use super::quant::adamw8::Moments8;
use super::quant::dynamic8::{BLOCK, SIGNED, UNSIGNED};
use crate::device::{read_f32, read_words};
use crate::error::Result;

/// The moments of a tensor on a graphics device.
#[derive(Debug)]
pub struct DeviceMoments {
    /// Numbers of the tensor.
    len: usize,
    /// Codes, four a word.
    codes: [Tensor<1, Int>; 2],
    /// Scales, one a block.
    absmax: [Tensor<1>; 2],
}

impl DeviceMoments {
    /// Brings moments to a device.
    pub fn upload(moments: &Moments8, device: &Device) -> Self {
        let scales = |absmax: &[f32]| Tensor::<1>::from_data(TensorData::new(absmax.to_vec(), [absmax.len()]), (device, DType::F32));
        Self {
            len: moments.m.len(),
            codes: [words(&moments.m, device), words(&moments.v, device)],
            absmax: [scales(&moments.m_absmax), scales(&moments.v_absmax)],
        }
    }

    /// Brings them back.
    ///
    /// # Errors
    /// Where the device failed.
    pub async fn download(&self) -> Result<Moments8> {
        let codes = async |words: &Tensor<1, Int>| -> Result<Vec<u8>> {
            let mut bytes: Vec<u8> = read_words(words.clone()).await?.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.truncate(self.len);
            Ok(bytes)
        };
        let ([m, v], [m_absmax, v_absmax]) = (&self.codes, &self.absmax);
        let (m, v) = (codes(m).await?, codes(v).await?);
        Ok(Moments8 { m, v, m_absmax: read_f32(m_absmax.clone()).await?, v_absmax: read_f32(v_absmax.clone()).await? })
    }

    /// Bytes that they take.
    pub fn size_bytes(&self) -> usize {
        2 * self.len.next_multiple_of(4) + 8 * self.len.div_ceil(BLOCK)
    }
}

/// One update; returns the weight.
pub fn adamw_8bit(param: Tensor<2>, moments: &mut DeviceMoments, grad: Tensor<2>, step: &AdamW) -> Tensor<2> {
    let device = grad.device();
    let cube = |tensor: Tensor<2>| into_contiguous(tensor.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"));
    // A buffer that somebody else still reads is copied first.
    let own = |tensor: CubeTensor| if tensor.can_mut() { tensor } else { tensor.copy() };
    let (param, grad) = (own(cube(param)), cube(grad));
    let [m, v] = [0, 1].map(|i| own(moments.codes[i].extract().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")));
    let [m_absmax, v_absmax] =
        [0, 1].map(|i| own(moments.absmax[i].extract().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")));
    let map: Vec<f32> = SIGNED.values.iter().chain(UNSIGNED.values.iter()).copied().collect();
    let map = Tensor::<1>::from_data(TensorData::new(map, [512]), (&device, DType::F32));
    let map = map.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    let params = super::adamw::params(moments.len, step);
    let groups = (moments.len.div_ceil(BLOCK).min(2048) as u32, 1);
    launch(ADAMW_8BIT, groups, &[&grad, &param, &m, &v, &m_absmax, &v_absmax, &map], &params);
    moments.codes = [m, v].map(Tensor::from_primitive::<Wgpu>);
    moments.absmax = [m_absmax, v_absmax].map(Tensor::from_primitive::<Wgpu>);
    Tensor::from_primitive::<Wgpu>(param)
}
