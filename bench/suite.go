package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
)

// SuiteOptions describe "bench all". Any field left zero takes the default in
// its comment.
type SuiteOptions struct {
	// Dir is where the files to measure on are made, and removed afterwards.
	// Default ./data/bench. Out is where results.json and results.html go. Default
	// bench/results.
	Dir, Out string
	// Binary is the program that runs as "BINARY node". Default this program.
	Binary string
	// Peers is the comparison with other logs, a directory with the module
	// bench/peers or a program built of it. Default bench/peers, if it is there;
	// "-": none.
	Peers string

	// Count is how many rounds each measure has: all its contestants one after
	// the other, and then again. Default 5. Duration is that of each run. Default
	// 2 s.
	Count    int
	Duration time.Duration

	// FileSize is the size of the file that fio and the engine share, DeviceSize
	// that of the node's one device. Defaults 1 GiB and 8 GiB.
	FileSize, DeviceSize int64
	// Memory bounds the node's memory. Default 1 GiB.
	Memory int64
	// IOEngine is the node's and the engine's. Default auto.
	IOEngine string

	// Only names the measures to take, such as T1. Default all but T11.
	Only []string
	// Long adds T11, ten minutes.
	Long bool

	// Table and Progress get the table and the progress. Default nobody.
	Table, Progress io.Writer
}

func (o SuiteOptions) withDefaults() (SuiteOptions, error) {
	setZero(&o.Dir, "./data/bench")
	setZero(&o.Out, "bench/results")
	setZero(&o.Count, 5)
	setZero(&o.Duration, 2*time.Second)
	setZero(&o.FileSize, 1<<30)
	setZero(&o.DeviceSize, 8<<30)
	setZero(&o.Memory, 1<<30)
	setZero(&o.IOEngine, "auto")
	if o.Peers == "" {
		if _, err := os.Stat("bench/peers/go.mod"); err == nil {
			o.Peers = "bench/peers"
		}
	}
	if o.Binary == "" {
		var err error
		if o.Binary, err = os.Executable(); err != nil {
			return o, fmt.Errorf("bench: all: which program is this?: %w", err)
		}
	}
	for _, id := range o.Only {
		if !slices.ContainsFunc(measures(), func(m measure) bool { return m.id == id }) {
			return o, fmt.Errorf("bench: all: there is no measure %q: %w", id, redoubt.ErrInvalid)
		}
	}
	if o.Count < 1 || o.Duration < 0 || o.FileSize < 64<<20 || o.DeviceSize < 64<<20 {
		return o, fmt.Errorf("bench: all: %d rounds of %v on files of %d and %d bytes: want one round and 64 MiB at least: %w",
			o.Count, o.Duration, o.FileSize, o.DeviceSize, redoubt.ErrInvalid)
	}
	return o, nil
}

// A Row is one line of the table: a figure that must reach a bound, and should
// reach another.
type Row struct {
	ID      string  `json:"id"`
	What    string  `json:"what"`
	Must    float64 `json:"must"`
	Aim     float64 `json:"aim"`
	Lower   bool    `json:"lower_is_better"`
	Figure  float64 `json:"figure"` // what must and aim are about
	Unit    string  `json:"unit"`   // of the figure: "x" for a ratio
	Verdict string  `json:"verdict"`

	// A ratio has two sides, each with a value for each round and its median. The
	// figure is the median of the rounds' ratios.
	Ours    *Side  `json:"ours,omitempty"`
	Against *Side  `json:"against,omitempty"`
	Note    string `json:"note,omitempty"`
}

// A Side is one contestant of a measure.
type Side struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Rounds []float64 `json:"rounds"`
}

// The verdicts.
const (
	verdictAim    = "aim"
	verdictMust   = "must"
	verdictMissed = "MISSED"
	verdictFailed = "FAILED"
)

// judge sets figure and verdict.
func (r *Row) judge(figure float64) {
	r.Figure = figure
	reached := func(bound float64) bool {
		if r.Lower {
			return figure <= bound
		}
		return figure >= bound
	}
	switch {
	case reached(r.Aim):
		r.Verdict = verdictAim
	case reached(r.Must):
		r.Verdict = verdictMust
	default:
		r.Verdict = verdictMissed
	}
}

// ratio fills in both sides and judges the median of the rounds' ratios.
func (r *Row) ratio(ours, against Side) {
	ours.Median, against.Median = median(ours.Rounds), median(against.Rounds)
	r.Ours, r.Against, r.Unit = &ours, &against, "x"
	var all []float64
	for i := range ours.Rounds {
		all = append(all, ours.Rounds[i]/against.Rounds[i])
	}
	r.judge(median(all))
}

// alone fills in the one side and judges its median.
func (r *Row) alone(ours Side) {
	ours.Median = median(ours.Rounds)
	r.Ours, r.Unit = &ours, ours.Unit
	r.judge(ours.Median)
}

// median returns the middle of v, or the mean of the two in the middle.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// A measure is one target of ours, and how it is taken.
type measure struct {
	id   string
	node bool // it needs the node
	run  func(s *suite, ctx context.Context) ([]Row, error)
}

func measures() []measure {
	return []measure{
		{"T1", false, (*suite).engineAppends},
		{"T2", false, (*suite).engineReads},
		{"T3", true, (*suite).nodeBytes},
		{"T4", true, (*suite).waitingWriters},
		{"T5", true, (*suite).pipelined},
		{"T5b", true, (*suite).busySegments},
		{"T6", true, (*suite).nodeReads},
		{"T7", true, (*suite).logBytes},
		{"T11", true, (*suite).tenMinutes},
		{"T14", true, (*suite).restarts},
		{"T16", true, (*suite).memoryBound},
	}
}

// A suite is a running "bench all".
type suite struct {
	SuiteOptions
	progress *Progress
	file     string // fio's and the engine's
	device   string // the node's
	node     *childNode
	peers    string  // the program, "" if there is none
	peersWhy string  // there is none
	rss      float64 // the most that the node ever took
	log64    []float64
	started  time.Time
}

// RunSuite takes all measures, prints the table, and writes results.json and
// results.html. A measure that is missed is no error; one that can't be taken
// is, after the others were.
func RunSuite(ctx context.Context, o SuiteOptions) ([]Row, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &suite{SuiteOptions: o, progress: NewProgress(o.Progress, "bench"), started: time.Now()}
	s.file, s.device = filepath.Join(o.Dir, "file"), filepath.Join(o.Dir, "device")
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	defer s.cleanUp()
	var rows []Row
	var errs []error
	for _, m := range measures() {
		if len(o.Only) > 0 && !slices.Contains(o.Only, m.id) || m.id == "T11" && !o.Long && !slices.Contains(o.Only, "T11") {
			continue
		}
		got, err := s.take(ctx, m)
		rows = append(rows, got...)
		if err != nil {
			errs = append(errs, fmt.Errorf("bench: %s: %w", m.id, err))
			rows = append(rows, Row{ID: m.id, What: "could not be taken", Verdict: verdictFailed, Note: err.Error()})
		}
		if ctx.Err() != nil {
			return rows, context.Cause(ctx)
		}
		for _, r := range rows[len(rows)-len(got):] {
			s.progress.Say("%s", r.line())
		}
	}
	errs = append(errs, s.report(rows))
	return rows, errors.Join(errs...)
}

// take takes one measure.
func (s *suite) take(ctx context.Context, m measure) ([]Row, error) {
	defer s.progress.Done()
	if m.node {
		if err := s.needNode(ctx); err != nil {
			return nil, err
		}
		defer s.sampleMemory(ctx)
	}
	return m.run(s, ctx)
}

// prepare makes the files and finds the peers.
func (s *suite) prepare(ctx context.Context) error {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("bench: all: %w", err)
	}
	s.progress.Say("making %s of files in %s, every byte written", sizeText(float64(s.FileSize+s.DeviceSize)), s.Dir)
	// A formatted device is a file that is fully written; as such fio and the
	// engine get theirs.
	for path, size := range map[string]int64{s.file: s.FileSize, s.device: s.DeviceSize} {
		_, err := blockdev.Format(ctx, path, blockdev.FormatOptions{Size: size, Force: true,
			Cluster: redoubt.ClusterID(redoubt.NewID()), Node: redoubt.NodeID(redoubt.NewID())})
		if err != nil {
			return fmt.Errorf("bench: all: %w", err)
		}
	}
	s.findPeers(ctx)
	return nil
}

// suiteLogShare is the share of its device that the node's log may take. The runs
// are short: with room for what they write, they measure appends; T11 measures
// appends against coalescing.
const suiteLogShare = "0.75"

// needNode starts the node if it isn't running.
func (s *suite) needNode(ctx context.Context) error {
	if s.node != nil {
		select {
		case <-s.node.exited: // a measure has brought it down, and said so
		default:
			return nil
		}
	}
	n, err := newChildNode(s.Binary, []string{s.device}, s.Memory, filepath.Join(s.Dir, "node.log"), "-io-engine", s.IOEngine,
		"-log-share", suiteLogShare)
	if err != nil {
		return err
	}
	if _, err := n.start(ctx); err != nil {
		return err
	}
	s.node = n
	return nil
}

// cleanUp stops the node and removes the files; what it said stays if it may be
// wanted.
func (s *suite) cleanUp() {
	if s.node != nil {
		s.node.end()
	}
	files := []string{s.file, s.device}
	if s.peers != "" && s.peers != s.Peers {
		files = append(files, s.peers) // it was built for this
	}
	if s.peers != "" {
		files = append(files, s.peersData())
	}
	for _, path := range files {
		if err := os.RemoveAll(path); err != nil {
			s.progress.Say("%v", err)
		}
	}
}

// rounds runs all contestants one after the other, Count times, and returns what
// each achieved in each round.
func (s *suite) rounds(ctx context.Context, label string, runs ...func(ctx context.Context) (float64, error)) ([][]float64, error) {
	out := make([][]float64, len(runs))
	for round := range s.Count {
		for i, run := range runs {
			s.progress.Show(uint64(round*len(runs)+i), uint64(s.Count*len(runs)), fmt.Sprintf("%s, round %d of %d", label, round+1, s.Count))
			v, err := run(ctx)
			if err != nil {
				return nil, err
			}
			out[i] = append(out[i], v)
		}
	}
	return out, nil
}

// line is the row in one line, for the progress.
func (r *Row) line() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s: %s, %s. %s", r.ID, r.What, r.figure(), r.Verdict, r.Note))
}

// figure prints the figure with its unit.
func (r *Row) figure() string {
	switch {
	case r.Unit == "x":
		return fmt.Sprintf("%.2f x", r.Figure)
	case r.Figure >= 1000:
		return fmt.Sprintf("%.0f %s", r.Figure, r.Unit)
	}
	return fmt.Sprintf("%.2f %s", r.Figure, r.Unit)
}
