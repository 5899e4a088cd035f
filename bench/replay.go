package bench

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/redoubt-storage/redoubt"
)

// ReplayOptions describe the replay of a trace. Node and Trace are required; any
// other field left zero takes the default in its comment, and one out of range
// is an error.
type ReplayOptions struct {
	// Node is the node's address.
	Node string

	// Trace opens the trace from its beginning; it is read two or three times.
	Trace func() (io.ReadCloser, error)

	// Volume is the name of the volume. The same name, trace size and PG size are
	// the same volume, on any run. Default "replay".
	Volume string

	// PGSize is the size of a protection group in bytes. Default 64 MiB.
	PGSize int64

	// Rate bounds the records a second. Default: no bound.
	Rate float64

	// Window bounds the bytes without an ack. Default 8 MiB.
	Window int64

	// LAL is the LSN allocation limit. Default 10,000,000.
	LAL uint64

	// Retry is how long the node may be away before the replay gives up; what had
	// no ack is sent again when it is back. Default 30 s.
	Retry time.Duration

	// VerifyOnly reads the volume back as it is, and changes nothing.
	VerifyOnly bool

	// Settle waits until the node has coalesced everything before the volume is
	// read back. Default: it doesn't wait.
	Settle bool

	// Moved is called, from one goroutine at a time, when VDL has moved. The
	// replay waits for it. Default nobody.
	Moved func(ReplayState)

	// Progress is told how it goes. Default nobody.
	Progress *Progress
}

// A ReplayState is how far a replay is.
type ReplayState struct {
	Durable uint64 // records of the trace at or below VDL
	Total   uint64 // records of the trace
	VDL     redoubt.LSN
	Bytes   uint64 // of the trace's records that were sent in this run
}

// A ReplayResult is what came of a replay. Records and commits are those that
// the volume holds in the end; rates are over what this run sent.
type ReplayResult struct {
	Records     uint64  `json:"records"`
	Commits     uint64  `json:"commits"`
	Sent        uint64  `json:"sent_records"`
	Bytes       uint64  `json:"sent_bytes"` // changed, of the records sent
	RecordsPerS float64 `json:"records_per_s"`
	CommitsPerS float64 `json:"commits_per_s"`
	BytesPerS   float64 `json:"bytes_per_s"`

	// As of other loads; an op is a commit, its latency from handing over to
	// VDL, and the CPU that of this process: the node's may start anew.
	Ops        uint64  `json:"ops"`
	OpsPerS    float64 `json:"ops_per_s"`
	P50us      float64 `json:"p50_us"`
	P99us      float64 `json:"p99_us"`
	P999us     float64 `json:"p999_us"`
	CPUusPerOp float64 `json:"cpu_us_per_op"`
	CPUOf      string  `json:"cpu_of"`
	Errors     uint64  `json:"errors"` // 1 when the replay or its proof failed

	CommitP50us float64 `json:"commit_p50_us"` // from handing over to VDL
	CommitP99us float64 `json:"commit_p99_us"`
	AckedLSN    uint64  `json:"acked_lsn"`    // VDL at the end
	ResumedFrom uint64  `json:"resumed_from"` // VDL that was found, 0: a new volume
	Retries     int     `json:"retries"`      // times the node was away
	ElapsedS    float64 `json:"elapsed_s"`    // of sending
	Volume      string  `json:"volume"`

	Pages       uint64  `json:"pages"`
	SHA256      string  `json:"sha256"` // of the volume as it was read back
	Want        string  `json:"want_sha256"`
	Match       bool    `json:"match"`
	VerifyS     float64 `json:"verify_s"`
	VerifyBytes float64 `json:"verify_bytes_per_s"`
}

func (o ReplayOptions) withDefaults() (ReplayOptions, error) {
	setZero(&o.Volume, "replay")
	setZero(&o.PGSize, 64<<20)
	setZero(&o.Window, 8<<20)
	setZero(&o.LAL, 10_000_000)
	setZero(&o.Retry, 30*time.Second)
	if o.Moved == nil {
		o.Moved = func(ReplayState) {}
	}
	var err error
	switch {
	case o.Node == "":
		err = errors.New("no node: name its address")
	case o.Trace == nil:
		err = errors.New("no trace")
	case o.Rate < 0 || o.Window < 1 || o.Retry < 0:
		err = fmt.Errorf("rate %v, window %d, retry %v: want none negative", o.Rate, o.Window, o.Retry)
	case o.LAL < 1000 || o.LAL > 1<<40:
		err = fmt.Errorf("LAL %d: want 1000 to %d", o.LAL, 1<<40)
	}
	if err != nil {
		return o, fmt.Errorf("bench: replay: %w: %w", err, redoubt.ErrInvalid)
	}
	return o, nil
}

// ErrMismatch says that a volume isn't what its trace says.
var ErrMismatch = errors.New("the volume is not what the trace says")

// RunReplay replays a trace into a volume of the node, going on from what is
// there, and reads the volume back. The error matches ErrMismatch when the hash
// is another one.
func RunReplay(ctx context.Context, o ReplayOptions) (res ReplayResult, err error) {
	defer func() {
		if err != nil {
			res.Errors = 1
		}
	}()
	if o, err = o.withDefaults(); err != nil {
		return res, err
	}
	sum, err := o.scan()
	if err != nil {
		return res, err
	}
	l, err := newLayout(o.Volume, sum.Pages, o.PGSize)
	if err != nil {
		return res, err
	}
	res.Volume, res.Pages, res.Want = o.Volume, sum.Pages, hex.EncodeToString(sum.SHA256[:])
	v := verification{opts: &o, layout: &l}
	if !o.VerifyOnly {
		r := newReplayer(o, l, sum)
		defer r.close()
		cpu := cpuTime()
		err := r.run(ctx)
		res = r.fill(res, cpuTime()-cpu)
		if err != nil {
			return res, err
		}
		v.point, v.need = r.readPoint()
	}
	if err := v.run(ctx); err != nil {
		return res, err
	}
	if o.VerifyOnly {
		res.Records, res.Commits = 0, v.control.commits
		res.AckedLSN = uint64(v.point)
	}
	res.SHA256 = hex.EncodeToString(v.sum[:])
	res.Match = v.sum == sum.SHA256
	res.VerifyS = v.elapsed.Seconds()
	res.VerifyBytes = float64(sum.Pages*redoubt.PageSize) / res.VerifyS
	if !res.Match {
		return res, fmt.Errorf("bench: replay: SHA-256 of volume %s at LSN %d is %s, END says %s (it has %d of %d commits): %w",
			o.Volume, v.point, res.SHA256, res.Want, v.control.commits, sum.Commits, ErrMismatch)
	}
	if res.Records == 0 {
		res.Records = sum.Records
	}
	return res, nil
}

// scan reads the whole trace before anything is sent.
func (o *ReplayOptions) scan() (TraceSummary, error) {
	f, err := o.Trace()
	if err != nil {
		return TraceSummary{}, fmt.Errorf("bench: replay: %w", err)
	}
	defer f.Close()
	return ScanTrace(f)
}

// TraceFile opens a trace in a file, and names the volume that it goes to unless
// another is wanted: the file's name without its endings.
func TraceFile(path string) (open func() (io.ReadCloser, error), volume string) {
	base := filepath.Base(path)
	for _, end := range []string{".gz", ".trace"} {
		if n := len(base) - len(end); n > 0 && base[n:] == end {
			base = base[:n]
		}
	}
	return func() (io.ReadCloser, error) { return os.Open(path) }, base
}
