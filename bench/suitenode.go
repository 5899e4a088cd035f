package bench

import (
	"context"
	"fmt"
	"time"
)

// appendRun returns a contestant: the node under an append load. pick chooses
// the figure.
func (s *suite) appendRun(o AppendOptions, pick func(AppendResult) float64) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		if err := s.awaitQuiet(ctx); err != nil {
			return 0, err
		}
		o.Node, o.NodeHTTP = s.node.addr, s.node.http
		setZero(&o.Duration, s.Duration)
		r, err := RunAppend(ctx, o)
		if err != nil {
			return 0, err
		}
		if r.CPUOf != cpuOfNode {
			return 0, fmt.Errorf("the node's metrics at %s could not be had", s.node.http)
		}
		return pick(r), nil
	}
}

const (
	quietDebt    = 0.05
	quietTimeout = time.Minute
)

// awaitQuiet waits until the node has done with the log of the run before, so
// that each run finds the same.
func (s *suite) awaitQuiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quietTimeout)
	defer cancel()
	for {
		m, err := scrape(ctx, s.node.http)
		if err != nil {
			return err
		}
		if m["redoubt_log_extents"] <= max(4, quietDebt*m["redoubt_log_extents_max"]) {
			return nil
		}
		if err := pause(ctx, settlePoll); err != nil {
			return fmt.Errorf("the node's log has still %.0f extents of %.0f, %v after the run before: %w",
				m["redoubt_log_extents"], m["redoubt_log_extents_max"], quietTimeout, err)
		}
	}
}

// nodeBytes is T3.
func (s *suite) nodeBytes(ctx context.Context) ([]Row, error) {
	got, err := s.rounds(ctx, "T3, batches of 32 KiB",
		s.fioRun(fioJob{blockSize: 128 << 10, depth: 16}, fioBytes),
		// 8 records of 4064 bytes are a batch of 32 KiB less a few headers. One batch
		// of each segment in flight is 2 MiB, which stay in the caches.
		s.appendRun(AppendOptions{Segments: 64, Batch: 8, RecordSize: 4064, Window: 1, Connections: 2}, func(r AppendResult) float64 { return r.BytesPerS }))
	if err != nil {
		return nil, err
	}
	r := Row{ID: "T3", What: "node, batches of 32 KiB to 64 segments over TCP, bytes/s against fio dsync 128 KiB depth 16", Must: 0.6, Aim: 0.9}
	r.ratio(Side{Name: "node", Unit: "bytes/s", Rounds: got[1]}, Side{Name: "fio dsync 128 KiB", Unit: "bytes/s", Rounds: got[0]})
	return []Row{r}, nil
}

// waitingWriters is T4: 256 writers that wait, against the best of the other
// logs in the same minute. Those have one log, which is one segment; 64 segments
// share the same device's log.
func (s *suite) waitingWriters(ctx context.Context) ([]Row, error) {
	const writers, size = 256, 128
	var best []peerResult
	rate := func(r AppendResult) float64 { return r.RecordsPerS }
	runs := []func(context.Context) (float64, error){
		s.appendRun(AppendOptions{Segments: 1, Writers: writers, RecordSize: size}, rate),
		s.appendRun(AppendOptions{Segments: 64, Writers: writers, RecordSize: size}, func(r AppendResult) float64 {
			s.log64 = append(s.log64, r.LogBytesPerRecord/size)
			return rate(r)
		}),
		func(ctx context.Context) (float64, error) {
			r, err := RunFloor(ctx, s.file, writers, size, s.Duration)
			return r.RecordsPerS, err
		},
	}
	name := "bare log in process"
	if s.peers != "" {
		name = "best of raft-wal, etcd, pebble in process"
		runs = append(runs, func(ctx context.Context) (float64, error) {
			p, err := s.runPeers(ctx, writers, size)
			best = append(best, p)
			return p.RecordsPerS, err
		})
	}
	got, err := s.rounds(ctx, "T4, waiting writers", runs...)
	if err != nil {
		return nil, err
	}
	against := Side{Name: name, Unit: "records/s", Rounds: got[len(got)-1]}
	note := fmt.Sprintf("bare log in process, the floor: %.0f records/s", median(got[2]))
	if s.peers == "" {
		note = "no other logs to compare with: " + s.peersWhy
	} else {
		note += "; best was " + best[0].Name
	}
	var rows []Row
	for i, what := range []string{"1 segment", "64 segments"} {
		r := Row{ID: "T4", What: "node, 256 waiting writers of 128 bytes over TCP, " + what + ", against the best in-process log", Must: 0.7, Aim: 1.2, Note: note}
		r.ratio(Side{Name: "node, " + what, Unit: "records/s", Rounds: got[i]}, against)
		rows = append(rows, r)
	}
	return rows, nil
}

// pipelined is T5: rate and CPU.
func (s *suite) pipelined(ctx context.Context) ([]Row, error) {
	var cpu []float64
	got, err := s.rounds(ctx, "T5, pipelined batches of 256",
		s.appendRun(AppendOptions{Segments: 8, Batch: 256, Window: 4, Connections: 2}, func(r AppendResult) float64 {
			cpu = append(cpu, r.CPUusPerRecord)
			return r.RecordsPerS
		}))
	if err != nil {
		return nil, err
	}
	rate := Row{ID: "T5", What: "node, 128-byte records pipelined in batches of 256", Must: 2e6, Aim: 5e6}
	rate.alone(Side{Name: "node", Unit: "records/s", Rounds: got[0]})
	use := Row{ID: "T5", What: "CPU of the node for each of these records", Must: 0.5, Aim: 0.2, Lower: true}
	use.alone(Side{Name: "node", Unit: "us", Rounds: cpu})
	return []Row{rate, use}, nil
}

// busySegments is T5b.
func (s *suite) busySegments(ctx context.Context) ([]Row, error) {
	var reached []float64
	got, err := s.rounds(ctx, "T5b, 64 busy segments",
		s.fioRun(fioJob{blockSize: 4 << 10, depth: 1}, fioP50),
		s.appendRun(AppendOptions{Segments: 64, Batch: 32, Window: 64, Rate: 1e6}, func(r AppendResult) float64 {
			reached = append(reached, r.RecordsPerS)
			return r.P50us
		}))
	if err != nil {
		return nil, err
	}
	r := Row{ID: "T5b", What: "64 segments of one device, 1 million 128-byte records/s in batches of 32: ack p50 against fio dsync p50 at depth 1", Must: 8, Aim: 5, Lower: true}
	r.ratio(Side{Name: "node, p50", Unit: "us", Rounds: got[1]}, Side{Name: "fio dsync 4 KiB, p50", Unit: "us", Rounds: got[0]})
	r.Note = fmt.Sprintf("%.0f records/s were reached", median(reached))
	return []Row{r}, nil
}

// nodeReads is T6.
func (s *suite) nodeReads(ctx context.Context) ([]Row, error) {
	var cpu []float64
	got, err := s.rounds(ctx, "T6, reads",
		s.fioRun(fioJob{read: true, blockSize: 16 << 10, depth: 64}, fioOps),
		func(ctx context.Context) (float64, error) {
			if err := s.awaitQuiet(ctx); err != nil {
				return 0, err
			}
			r, err := RunRead(ctx, ReadOptions{Node: s.node.addr, NodeHTTP: s.node.http, Pages: 10000, Depth: 64, Duration: s.Duration})
			cpu = append(cpu, r.CPUusPerOp)
			return r.OpsPerS, err
		})
	if err != nil {
		return nil, err
	}
	r := Row{ID: "T6", What: "node, random reads of 16 KiB over TCP, depth 64, against fio", Must: 0.6, Aim: 0.85}
	r.ratio(Side{Name: "node", Unit: "ops/s", Rounds: got[1]}, Side{Name: "fio", Unit: "ops/s", Rounds: got[0]})
	r.Note = fmt.Sprintf("CPU of the node: %.1f us a read", median(cpu))
	return []Row{r}, nil
}

// logBytes is T7. The rounds with 64 segments are those of T4, if it was taken.
func (s *suite) logBytes(ctx context.Context) ([]Row, error) {
	const size = 128
	share := func(r AppendResult) float64 { return r.LogBytesPerRecord / size }
	var rows []Row
	for _, segments := range []int{64, 1} {
		rounds := s.log64
		if segments != 64 || len(rounds) == 0 {
			got, err := s.rounds(ctx, fmt.Sprintf("T7, %d segments", segments), s.appendRun(AppendOptions{Segments: segments, RecordSize: size}, share))
			if err != nil {
				return rows, err
			}
			rounds = got[0]
		}
		r := Row{ID: "T7", What: fmt.Sprintf("device bytes of the hot log for each payload byte, 256 waiting writers of 128 bytes, %d segments", segments), Must: 1.6, Aim: 1.3, Lower: true}
		r.alone(Side{Name: "node", Unit: "bytes", Rounds: rounds})
		rows = append(rows, r)
	}
	return rows, nil
}

// tenMinutes is T11.
func (s *suite) tenMinutes(ctx context.Context) ([]Row, error) {
	r, err := RunAppend(ctx, AppendOptions{Node: s.node.addr, NodeHTTP: s.node.http, Duration: 10*time.Minute + time.Second, Progress: s.progress})
	if err != nil {
		return nil, err
	}
	if len(r.Minutes) < 10 {
		return nil, fmt.Errorf("only %d minutes were measured", len(r.Minutes))
	}
	var rates, p99 []float64
	for _, m := range r.Minutes {
		rates, p99 = append(rates, m.RecordsPerS), append(p99, m.P99us)
	}
	row := Row{ID: "T11", What: "ingest with coalescing for ten minutes: p99 of the last minute against the second", Must: 1.5, Aim: 1.1, Lower: true}
	row.ratio(Side{Name: "minute 10", Unit: "us", Rounds: p99[9:10]}, Side{Name: "minute 2", Unit: "us", Rounds: p99[1:2]})
	row.Note = fmt.Sprintf("p99 by minute, us: %.0f; records/s: %.0f", p99, rates)
	return []Row{row}, nil
}
