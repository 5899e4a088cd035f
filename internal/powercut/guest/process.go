package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// Redoubt is where the guest's binary lies.
const Redoubt = "/redoubt"

// nodeAddr is where the guest's node listens.
const nodeAddr = "127.0.0.1:7420"

// program is the redoubt binary.
type program struct {
	path string
	log  io.Writer // gets what it says on its standard error
}

// run runs a subcommand to its end and gives its standard output.
func (p program) run(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	c := exec.CommandContext(ctx, p.path, args...)
	c.Stdout, c.Stderr = &out, p.log
	if err := c.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("guest: redoubt %s: %w", args[0], err)
	}
	return out.Bytes(), nil
}

// A checkReport is what the verdict needs of `redoubt check -json`.
type checkReport struct {
	Devices []struct {
		Path   string
		Clean  bool `json:"clean_shutdown"`
		Notes  []string
		Damage []struct {
			Offset        int64
			Segment, What string
		}
	}
	Damage int
	Set    string
}

// check has the devices checked offline. Damage is a verdict: a power cut takes
// nothing away that was acknowledged, so it leaves no damage behind. It tells how
// many notes there were of what was torn.
func (p program) check(ctx context.Context, paths []string) (torn uint64, clean bool, err error) {
	out, runErr := p.run(ctx, append([]string{"check", "-json"}, paths...)...)
	var r checkReport
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, false, errors.Join(fmt.Errorf("guest: check says nothing that can be read: %w: %w", err, ErrLost), runErr)
	}
	clean = true
	var bad []string
	for _, d := range r.Devices {
		clean = clean && d.Clean
		for _, note := range d.Notes {
			if strings.Contains(note, ": torn") {
				torn++
			}
		}
		for _, x := range d.Damage {
			bad = append(bad, fmt.Sprintf("%s at byte %d: %s", d.Path, x.Offset, x.What))
		}
	}
	switch {
	case r.Damage > 0 || len(bad) > 0:
		return torn, clean, fmt.Errorf("guest: check finds %d damaged places: %s: %w", r.Damage, strings.Join(bad, "; "), ErrLost)
	case len(r.Devices) != len(paths) || r.Set != "":
		return torn, clean, fmt.Errorf("guest: check finds %d of %d devices: %s: %w", len(r.Devices), len(paths), r.Set, ErrLost)
	case runErr != nil:
		return torn, clean, errors.Join(runErr, ErrLost)
	}
	return torn, clean, nil
}

// A nodeProcess is a running node.
type nodeProcess struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended, after err was set
	err   error
}

// startNode starts a node and waits until it is ready. A node that doesn't come up
// is a verdict.
func (p program) startNode(ctx context.Context, addr string, args ...string) (*nodeProcess, error) {
	n := &nodeProcess{ended: make(chan struct{})}
	n.cmd = exec.CommandContext(ctx, p.path, append([]string{"node", "-listen", addr, "-http", "-"}, args...)...)
	log, err := n.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("guest: node: %w", err)
	}
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("guest: node: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		defer close(n.ended)
		p.follow(log, sync.OnceFunc(func() { close(ready) }))
		n.err = n.cmd.Wait()
	}()
	select {
	case <-ready:
		return n, nil
	case <-n.ended:
		return nil, fmt.Errorf("guest: the node ended before it was ready: %v: %w", n.err, ErrLost)
	}
}

// follow passes the node's log on, and calls ready when it says that it is.
func (p program) follow(log io.Reader, ready func()) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fmt.Fprintf(p.log, "%s\n", lines.Text())
		if strings.Contains(lines.Text(), "msg=ready ") {
			ready()
		}
	}
}

// stop shuts the node down in an orderly way.
func (n *nodeProcess) stop() error {
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("guest: stopping the node: %w", err)
	}
	<-n.ended
	if n.err != nil {
		return fmt.Errorf("guest: the node did not shut down in order: %v: %w", n.err, ErrLost)
	}
	return nil
}
