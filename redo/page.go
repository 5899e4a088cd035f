package redo

import (
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
)

// PageSum returns the CRC-32C that binds a page's bytes to the volume, the page
// number and the LSN of the last record applied. It covers, in this order, the
// 16 bytes of the volume ID, the page number and the LSN as u64, and the page.
func PageSum(vol redoubt.VolumeID, page redoubt.PageNo, lsn redoubt.LSN, b []byte) uint32 {
	state := word(word(volumeState(vol), uint64(page)), uint64(lsn))
	return crc32.Update(^state, castagnoli, b[:redoubt.PageSize])
}
