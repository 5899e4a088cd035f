package coalescer

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
)

// What a run costs, over a device that costs nothing: ns a page and a record.
func BenchmarkFold(b *testing.B) {
	for _, c := range []struct {
		name   string
		cached bool
	}{{"in memory", true}, {"from the device", false}} {
		b.Run(c.name, func(b *testing.B) {
			r := newMemRig(b, newMemDevice(256), redoubt.DeviceID{1}, 64)
			const records = 640
			pages := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				changes := make([]pageChange, records)
				for i := range changes {
					changes[i] = pageChange{page: uint32(i*7) % 64, kind: redo.Write, off: i % 16000, data: r.frames.Region()[:128]}
				}
				r.append(b, changes)
				if !c.cached {
					r.store.Reclaim(1 << 20)
				}
				b.StartTimer()
				if err := r.folder.Flush(r.now); err != nil {
					b.Fatal(err)
				}
				did, err := r.folder.Pass(r.now)
				if err != nil {
					b.Fatal(err)
				}
				pages += did.Pages
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(pages), "ns/page")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
		})
	}
}

// What folding does on a file: random pages of a segment, some records each, in
// large runs, with the log in memory and without.
func BenchmarkFoldOnAFile(b *testing.B) {
	for _, c := range []struct {
		name   string
		cached bool
	}{{"log in memory", true}, {"log from the device", false}} {
		b.Run(c.name, func(b *testing.B) {
			dev := fileDevice(b)
			r := newMemRig(b, dev, dev.Super().Device, 8192)
			rnd := rand.New(rand.NewPCG(1, 1))
			data := make([]byte, 128)
			pages, records := 0, 0
			var busy time.Duration
			b.ResetTimer()
			for range b.N {
				for range 4 {
					changes := make([]pageChange, 1024)
					for i := range changes {
						changes[i] = pageChange{page: rnd.Uint32N(8192), kind: redo.Write, off: rnd.IntN(16000), data: data}
					}
					r.append(b, changes)
				}
				if !c.cached {
					r.store.Reclaim(1 << 20)
				}
				start := time.Now()
				if err := r.folder.Flush(r.now); err != nil {
					b.Fatal(err)
				}
				for {
					did, err := r.folder.Pass(r.now)
					if err != nil {
						b.Fatal(err)
					}
					pages, records = pages+did.Pages, records+did.Records
					if done, err := r.folder.Flushed(r.now); done || err != nil {
						break
					}
				}
				busy += time.Since(start)
			}
			b.ReportMetric(float64(pages)/busy.Seconds(), "pages/s")
			b.ReportMetric(float64(records)/busy.Seconds(), "records/s")
		})
	}
}

// fileDevice formats a file and opens it.
func fileDevice(b *testing.B) *blockdev.Device {
	b.Helper()
	path := filepath.Join(b.TempDir(), "device")
	if _, err := blockdev.Format(context.Background(), path, blockdev.FormatOptions{Size: 512 << 20, Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2}}); err != nil {
		b.Skipf("no device here: %v", err)
	}
	dev, err := blockdev.Open(path, blockdev.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := dev.ClearClean(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = dev.Close() })
	return dev
}
