package redo

import (
	"fmt"
	"hash/crc32"
	"testing"

	klauspost "github.com/klauspost/crc32"
	"github.com/redoubt-storage/redoubt"
)

// BenchmarkCRC sets the two implementations of CRC-32C that we may use against
// one another; crc.go says what came out and what follows.
//
//	go test ./redo -run '^$' -bench CRC -count 10 | go tool benchstat -col /impl -
func BenchmarkCRC(b *testing.B) {
	std, kp := crc32.MakeTable(crc32.Castagnoli), klauspost.MakeTable(klauspost.Castagnoli)
	for _, n := range []int{24, 64, 128, 512, 4 << 10, 16 << 10, 256 << 10} {
		buf := make([]byte, n)
		b.Run(fmt.Sprintf("bytes=%d/impl=std", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				crc32.Update(0, std, buf)
			}
		})
		b.Run(fmt.Sprintf("bytes=%d/impl=klauspost", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				klauspost.Update(0, kp, buf)
			}
		})
	}
}

// benchBatch fills b with records of 128 bytes, payload 112.
func benchBatch(b *Builder, buf []byte, records int) []byte {
	var data [112]byte
	b.Reset(buf, goldenVolume, 1, 1, 0)
	for i := range records {
		b.Write(redoubt.LSN(i+1), uint32(i), 0, 100, data[:], false)
	}
	return b.Finish()
}

// BenchmarkBatch is the cost of a record of 128 bytes, in ns, on either side.
func BenchmarkBatch(b *testing.B) {
	for _, records := range []int{1, 32, 256} {
		buf := make([]byte, 64<<10)
		page := make([]byte, redoubt.PageSize)
		var bu Builder
		batch := benchBatch(&bu, buf, records)
		h, _ := ParseHeader(batch)
		run := func(name string, f func()) {
			b.Run(fmt.Sprintf("%s/records=%d", name, records), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
			})
		}
		run("build", func() { benchBatch(&bu, buf, records) })
		run("verify", func() { Verify(goldenVolume, batch) })
		run("apply", func() {
			for it := Records(batch, h); it.Next(); {
				it.Apply(page)
			}
		})
	}
}

func BenchmarkPageSum(b *testing.B) {
	page := make([]byte, redoubt.PageSize)
	b.SetBytes(redoubt.PageSize)
	b.ReportAllocs()
	for b.Loop() {
		PageSum(goldenVolume, 7, 9, page)
	}
}
