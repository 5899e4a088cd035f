package bench

import (
	"context"
	"fmt"
	"io"
	"time"
)

const readHelp = `Write pages to fresh segments of a node, wait until the node has coalesced them,
then read at random with -depth requests in flight. The sum of every page is
checked, and its bytes are compared with what was written.

  redoubt bench read -node 127.0.0.1:7420 -pages 10000 -depth 64 -duration 5s -json
  redoubt bench read -pages 10000 -vector 16 -depth 8

JSON: ops_per_s (requests), pages_per_s, bytes_per_s, p50_us, p99_us, p999_us,
cpu_us_per_op, cpu_of, errors.`

// ReadCmd is "redoubt bench read".
func ReadCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("bench read", readHelp, stderr)
	var o ReadOptions
	var asJSON bool
	loadFlags(fs, &o.Node, &o.NodeHTTP, &asJSON)
	fs.IntVar(&o.Pages, "pages", 10000, "pages of 16 KiB to write and read")
	fs.IntVar(&o.Segments, "segments", 16, "segments that hold them")
	fs.IntVar(&o.Depth, "depth", 64, "requests in flight")
	fs.IntVar(&o.Vector, "vector", 1, "pages of a request, at most 64")
	fs.DurationVar(&o.Duration, "duration", 5*time.Second, "how long to read")
	fs.IntVar(&o.Connections, "connections", 2, "connections that share the segments")
	sizeVar(fs, &o.PGSize, "pg-size", "size of a segment; default 64MiB, or what the pages need")
	if err := parse(fs, args); err != nil {
		return err
	}
	o.Progress = NewProgress(stderr, "read")
	res, err := RunRead(ctx, o)
	if asJSON {
		if jerr := printJSON(stdout, res); err == nil {
			err = jerr
		}
		return err
	}
	if res.Ops > 0 {
		fmt.Fprintf(stdout, "reads      %.0f/s, %.0f pages/s, %s/s, %d in %.1f s, %d errors\n",
			res.OpsPerS, res.PagesPerS, sizeText(res.BytesPerS), res.Ops, res.ElapsedS, res.Errors)
		fmt.Fprintf(stdout, "latency    p50 %.0f us, p99 %.0f us, p99.9 %.0f us\n", res.P50us, res.P99us, res.P999us)
		fmt.Fprintf(stdout, "CPU        %.1f us a request, of %s\n", res.CPUusPerOp, res.CPUOf)
	}
	return err
}
