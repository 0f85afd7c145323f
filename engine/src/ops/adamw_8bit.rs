//! AdamW with moments of 8 bits on a graphics device: one launch, in place. On the CPU see
//! [`adamw8`](super::quant::adamw8::adamw8).

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, Transaction};
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::ADAMW_8BIT;

use super::adamw::AdamW;
use super::launch::{launch, words};
use super::quant::adamw8::Moments8;
use super::quant::dynamic8::{BLOCK, SIGNED, UNSIGNED};
use crate::device::failed;
use crate::error::{Error, Result};

/// The moments of a tensor on a graphics device.
#[derive(Debug)]
pub struct DeviceMoments {
    /// Numbers of the tensor.
    len: usize,
    /// Codes, four a word.
    codes: [Tensor<1, Int>; 2],
    /// Scales, one a block.
    absmax: [Tensor<1>; 2],
    /// See [`map`].
    map: Tensor<1>,
}

/// What the codes of both moments stand for, `[512]`; one for all tensors of a device.
pub fn map(device: &Device) -> Tensor<1> {
    let values: Vec<f32> = SIGNED.values.iter().chain(UNSIGNED.values.iter()).copied().collect();
    Tensor::from_data(TensorData::new(values, [512]), (device, DType::F32))
}

impl DeviceMoments {
    /// Brings moments to the device of the map.
    pub fn upload(moments: &Moments8, map: &Tensor<1>) -> Self {
        let device = &map.device();
        let scales = |absmax: &[f32]| Tensor::<1>::from_data(TensorData::new(absmax.to_vec(), [absmax.len()]), (device, DType::F32));
        Self {
            len: moments.m.len(),
            codes: [words(&moments.m, device), words(&moments.v, device)],
            absmax: [scales(&moments.m_absmax), scales(&moments.v_absmax)],
            map: map.clone(),
        }
    }

    /// Brings them back.
    ///
    /// # Errors
    /// Where the device failed.
    pub async fn download(&self) -> Result<Moments8> {
        let ([m, v], [m_absmax, v_absmax]) = (self.codes.clone(), self.absmax.clone());
        let read = Transaction::default().register(m).register(v).register(m_absmax).register(v_absmax).execute_async().await;
        let [m, v, m_absmax, v_absmax]: [TensorData; 4] =
            read.map_err(|e| failed(&e))?.try_into().map_err(|_| Error::Internal("four tensors were read".into()))?;
        let codes = |data: TensorData| {
            let mut bytes = data.as_bytes().to_vec();
            bytes.truncate(self.len);
            bytes
        };
        let scales = |data: TensorData| data.try_to_vec::<f32>().map_err(|e| Error::Internal(format!("reading a tensor: {e:?}")));
        Ok(Moments8 { m: codes(m), v: codes(v), m_absmax: scales(m_absmax)?, v_absmax: scales(v_absmax)? })
    }
}

/// One update; returns the weight.
pub fn adamw_8bit(param: Tensor<2>, moments: &mut DeviceMoments, grad: Tensor<2>, step: &AdamW) -> Tensor<2> {
    let cube = |tensor: Tensor<2>| into_contiguous(tensor.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"));
    // A buffer that somebody else still reads is copied first.
    let own = |tensor: CubeTensor| if tensor.can_mut() { tensor } else { tensor.copy() };
    let (param, grad) = (own(cube(param)), cube(grad));
    let [m, v] = [0, 1].map(|i| own(moments.codes[i].extract().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")));
    let [m_absmax, v_absmax] =
        [0, 1].map(|i| own(moments.absmax[i].extract().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")));
    let map = moments.map.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    let params = super::adamw::params(moments.len, step);
    let groups = (moments.len.div_ceil(BLOCK).min(2048) as u32, 1);
    launch(ADAMW_8BIT, groups, &[&grad, &param, &m, &v, &m_absmax, &v_absmax, &map], &params);
    moments.codes = [m, v].map(Tensor::from_primitive::<Wgpu>);
    moments.absmax = [m_absmax, v_absmax].map(Tensor::from_primitive::<Wgpu>);
    Tensor::from_primitive::<Wgpu>(param)
}
