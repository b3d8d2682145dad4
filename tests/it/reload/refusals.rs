//! Configurations that are refused: at whatever stage, what runs goes on, it is told why, and the mend is taken up. And
//! what is answered to who asks for a reload.
