package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/redoubt-storage/redoubt/node"
)

func runNode(ctx context.Context, args []string) error {
	fs := newFlags("node", "Run a storage node on the devices that \"redoubt format\" made. SIGTERM or SIGINT shuts\n"+
		"it down cleanly: what was admitted becomes durable and is acknowledged first.\n\n"+
		"  redoubt node -devices /dev/nvme1n1,/dev/nvme2n1 -listen 10.0.0.5:7420 -memory 8GiB\n\n"+
		"Metrics, health, state and profiles: /metrics, /healthz, /status, /debug/pprof/ on -http.")
	var o node.Options
	devices := fs.String("devices", "", "all of the node's devices, comma-separated, in any order")
	grace := fs.Duration("grace", 10*time.Second, "how long a clean shutdown waits for clients")
	level := fs.String("log-level", "info", "debug, info, warn or error")
	asJSON := fs.Bool("log-json", false, "log as JSON")
	nodeFlags(fs, &o)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.Devices = paths(*devices); len(o.Devices) == 0 || fs.NArg() > 0 {
		return errors.New("name the devices with -devices PATH,PATH and so on")
	}
	log, err := newLogger(*level, *asJSON)
	if err != nil {
		return err
	}
	o.Log = log
	n, err := node.Open(ctx, o)
	if err != nil {
		return err
	}
	log.Info("ready", "node", n.ID(), "listen", n.Addr(), "http", n.HTTPAddr())
	<-ctx.Done()
	log.Info("shutting down", "grace", *grace)
	closing, cancel := context.WithTimeout(context.Background(), *grace)
	defer cancel()
	if err := n.Close(closing); err != nil {
		return err
	}
	log.Info("clean")
	return nil
}

// nodeFlags makes every tunable of a node a flag.
func nodeFlags(fs *flag.FlagSet, o *node.Options) {
	bytesVar := func(p *int64, name string, def int64, help string) {
		*p = def
		fs.Var((*size)(p), name, help)
	}
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:7420", "where clients come")
	fs.StringVar(&o.HTTP, "http", "127.0.0.1:7421", "where metrics and health are; - for nowhere")
	fs.StringVar(&o.Name, "name", "", "what the node calls itself; default the host's name")
	fs.StringVar(&o.IOEngine, "io-engine", "auto", "auto, uring or sync")
	fs.StringVar(&o.Durability, "durability", "auto", "auto, fua, flush, or plp: you vouch for power-loss protection")
	bytesVar(&o.Memory, "memory", 1<<30, "bound of the node's memory")
	fs.Float64Var(&o.LogShare, "log-share", 0.375, "share of each device that its hot log may take")
	fs.IntVar(&o.MaxConns, "max-connections", 4096, "bound of the connections")
	fs.DurationVar(&o.FrameTimeout, "frame-timeout", 30*time.Second, "how long a frame may take to arrive")
	fs.IntVar(&o.Queue.Depth, "log-depth", 2, "log writes in flight for each device")
	fs.IntVar(&o.Queue.MaxWriteBytes, "log-write-max", 1<<20, "largest log write, bytes")
	fs.IntVar(&o.Queue.EagerBytes, "log-write-eager", 128<<10, "what must have gathered for another write beside one in flight, bytes")
	bytesVar(&o.Queue.MaxQueueBytes, "log-queue-max", 16<<20, "what may wait for each device")
	fs.Float64Var(&o.Queue.SoftDebt, "throttle-debt", 0.5, "share of the log from which on appends are slowed down")
	fs.DurationVar(&o.Queue.FullTimeout, "full-timeout", 10*time.Second, "how long an append waits for a full log before it is refused")
	fs.DurationVar(&o.Coalesce.MaxAge, "coalesce-age", 5*time.Second, "how old a record grows before its page is coalesced")
	fs.IntVar(&o.LongChain, "coalesce-chain", 128, "records of a page from which on it is coalesced early")
	fs.IntVar(&o.Coalesce.RunPages, "coalesce-run", 64, "pages of one coalescing run")
	fs.Float64Var(&o.Coalesce.SoftDebt, "coalesce-soft-debt", 0.2, "share of the log from which on its tail is coalesced")
	fs.Float64Var(&o.Coalesce.FullDebt, "coalesce-full-debt", 0.5, "share of the log from which on coalescing goes at its full rate")
	bytesVar(&o.Coalesce.IdleRate, "coalesce-idle-rate", 32<<20, "bytes a second that coalescing reads and writes at rest")
	bytesVar(&o.Coalesce.MaxRate, "coalesce-max-rate", 1<<30, "and in debt")
	fs.Func("scrub-rate", "bytes a second that are read again and checked on each device; 0: none (default 8MiB)", func(v string) error {
		var s size
		if err := s.Set(v); err != nil {
			return err
		}
		if o.Coalesce.ScrubRate = int64(s); s == 0 {
			o.Coalesce.ScrubRate = -1
		}
		return nil
	})
	fs.DurationVar(&o.Coalesce.ScrubPause, "scrub-pause", time.Minute, "rest between two scrubs")
}

func newLogger(level string, asJSON bool) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("-log-level %q: want debug, info, warn or error", level)
	}
	ho := &slog.HandlerOptions{Level: l}
	if asJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, ho)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, ho)), nil
}
