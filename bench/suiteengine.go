package bench

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// fioRun returns a contestant: fio on the file. pick chooses the figure.
func (s *suite) fioRun(j fioJob, pick func(fioResult) float64) func(context.Context) (float64, error) {
	j.file, j.size, j.duration = s.file, s.FileSize, s.Duration
	return func(ctx context.Context) (float64, error) {
		r, err := j.run(ctx)
		return pick(r), err
	}
}

// engineRun returns a contestant: our engine on the same file.
func (s *suite) engineRun(o DeviceOptions, pick func(Result) float64) func(context.Context) (float64, error) {
	o.Duration, o.Engine = s.Duration, s.IOEngine
	return func(ctx context.Context) (float64, error) {
		fds, err := openAll([]string{s.file}, o.Op == OpRead)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fds[0])
		r, err := RunDevice(ctx, fds, o)
		return pick(r), err
	}
}

func fioOps(r fioResult) float64   { return r.opsPerS }
func fioBytes(r fioResult) float64 { return r.bytesPerS }
func fioP50(r fioResult) float64   { return r.p50us }

// engineAppends is T1: durable appends of the engine against fio. Both ways to
// be durable are measured; the row is that of the better one, since the node
// chooses by the device.
func (s *suite) engineAppends(ctx context.Context) (rows []Row, err error) {
	for _, c := range []struct{ size, depth int }{{4 << 10, 32}, {16 << 10, 32}, {256 << 10, 16}} {
		ops := func(r Result) float64 { return r.OpsPerS }
		o := DeviceOptions{Op: OpAppend, BlockSize: c.size, Depth: c.depth}
		fua, flush := o, o
		fua.Durability, flush.Durability = FUA, Flush
		got, err := s.rounds(ctx, fmt.Sprintf("T1, appends of %d KiB", c.size>>10),
			s.fioRun(fioJob{blockSize: c.size, depth: c.depth}, fioOps), s.engineRun(fua, ops), s.engineRun(flush, ops))
		if err != nil {
			return rows, err
		}
		name, ours := FUA, got[1]
		if median(got[2]) > median(got[1]) {
			name, ours = Flush, got[2]
		}
		r := Row{ID: "T1", What: fmt.Sprintf("engine, durable appends of %d KiB, depth %d, against fio", c.size>>10, c.depth), Must: 0.95, Aim: 1.1}
		r.ratio(Side{Name: "engine, " + name, Unit: "ops/s", Rounds: ours}, Side{Name: "fio dsync", Unit: "ops/s", Rounds: got[0]})
		r.Note = fmt.Sprintf("medians: fua %.0f, flush %.0f ops/s", median(got[1]), median(got[2]))
		rows = append(rows, r)
	}
	return rows, nil
}

// engineReads is T2: random reads of the engine against fio, and their CPU.
func (s *suite) engineReads(ctx context.Context) (rows []Row, err error) {
	for _, depth := range []int{32, 128} {
		var cpu, fioCPU []float64
		fio := s.fioRun(fioJob{read: true, blockSize: 16 << 10, depth: depth}, func(r fioResult) float64 {
			fioCPU = append(fioCPU, r.cpuUsPerOp)
			return r.opsPerS
		})
		engine := s.engineRun(DeviceOptions{Op: OpRead, BlockSize: 16 << 10, Depth: depth}, func(r Result) float64 {
			cpu = append(cpu, r.CPUusPerOp)
			return r.OpsPerS
		})
		got, err := s.rounds(ctx, fmt.Sprintf("T2, reads at depth %d", depth), fio, engine)
		if err != nil {
			return rows, err
		}
		r := Row{ID: "T2", What: fmt.Sprintf("engine, random reads of 16 KiB, depth %d, against fio", depth), Must: 0.95, Aim: 1.0}
		r.ratio(Side{Name: "engine", Unit: "ops/s", Rounds: got[1]}, Side{Name: "fio", Unit: "ops/s", Rounds: got[0]})
		r.Note = fmt.Sprintf("CPU an op: %.1f us, fio %.1f us", median(cpu), median(fioCPU))
		rows = append(rows, r)
	}
	return rows, nil
}
