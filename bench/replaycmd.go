package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

const replayHelp = `Replay a trace, the redo of a real database run, into a volume of a node, then read
the whole volume back and compare its SHA-256 with the one in the trace.

  redoubt bench replay -node 127.0.0.1:7420 -trace pgbench.trace.gz -json
  redoubt bench replay -trace pgbench.trace.gz -verify-only

When the node goes away, the replay connects again for -retry and sends again
what had no ack. Started anew on a node that has a part of the volume, it goes on
from there: it fences the writer before, finds VDL, truncates what is above.
The volume's identity is a hash of -volume, -pg-size and the trace's size.

JSON: records, commits, records_per_s, commits_per_s, commit_p50_us,
commit_p99_us, pages, sha256, match, acked_lsn, resumed_from, retries, elapsed_s.
Exit status 1 when the volume isn't what the trace says.`

// ReplayCmd is "redoubt bench replay".
func ReplayCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("bench replay", replayHelp, stderr)
	o := ReplayOptions{PGSize: 64 << 20, Window: 8 << 20}
	fs.StringVar(&o.Node, "node", "127.0.0.1:7420", "address of the node")
	trace := fs.String("trace", "", "the trace, a file")
	fs.StringVar(&o.Volume, "volume", "", "name of the volume; default the trace's file name without .trace.gz")
	sizeVar(fs, &o.PGSize, "pg-size", "size of a protection group")
	fs.Float64Var(&o.Rate, "rate", 0, "records a second; 0: no bound")
	sizeVar(fs, &o.Window, "window", "bytes without an ack")
	fs.Uint64Var(&o.LAL, "lal", 10_000_000, "LSN allocation limit: how far LSNs may be ahead of VDL")
	fs.DurationVar(&o.Retry, "retry", 30*time.Second, "how long the node may be away")
	fs.BoolVar(&o.VerifyOnly, "verify-only", false, "read back and compare, change nothing")
	fs.BoolVar(&o.Settle, "settle", false, "wait until the node has coalesced everything before reading back")
	asJSON := fs.Bool("json", false, "print the result as one JSON object")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *trace == "" {
		return errors.New("bench: replay: name the trace: -trace FILE")
	}
	var name string
	if o.Trace, name = TraceFile(*trace); o.Volume == "" {
		o.Volume = name
	}
	o.Progress = NewProgress(stderr, "replay")
	res, err := RunReplay(ctx, o)
	if *asJSON {
		if jerr := printJSON(stdout, res); err == nil {
			err = jerr
		}
		return err
	}
	if err == nil || errors.Is(err, ErrMismatch) {
		printReplay(stdout, res)
	}
	return err
}

func printReplay(w io.Writer, r ReplayResult) {
	if r.Sent > 0 {
		fmt.Fprintf(w, "sent       %d records, %s in %.1f s: %.0f records/s, %.0f commits/s, %s/s\n",
			r.Sent, sizeText(float64(r.Bytes)), r.ElapsedS, r.RecordsPerS, r.CommitsPerS, sizeText(r.BytesPerS))
		fmt.Fprintf(w, "commit     p50 %.0f us, p99 %.0f us from handing over to VDL\n", r.CommitP50us, r.CommitP99us)
	}
	if r.ResumedFrom > 0 {
		fmt.Fprintf(w, "resumed    from LSN %d\n", r.ResumedFrom)
	}
	fmt.Fprintf(w, "volume     %s: %d records, %d commits, VDL %d\n", r.Volume, r.Records, r.Commits, r.AckedLSN)
	fmt.Fprintf(w, "read back  %d pages in %.1f s, %s/s\n", r.Pages, r.VerifyS, sizeText(r.VerifyBytes))
	if r.Match {
		fmt.Fprintf(w, "SHA-256    %s: the volume is byte-identical\n", r.SHA256)
	} else {
		fmt.Fprintf(w, "SHA-256    %s, want %s: THE VOLUME IS DIFFERENT\n", r.SHA256, r.Want)
	}
}
