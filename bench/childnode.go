package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redoubt-storage/redoubt/node"
)

// A childNode is a storage node in a process of its own, so that it can be
// killed, and its CPU and memory measured apart from ours.
type childNode struct {
	binary  string
	devices []string
	memory  int64
	extra   []string // flags
	addr    string
	http    string
	logPath string

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
	err    error         // of the process, once it is gone
}

// newChildNode chooses two free ports. Nothing runs yet.
func newChildNode(binary string, devices []string, memory int64, logPath string, extra ...string) (*childNode, error) {
	n := &childNode{binary: binary, devices: devices, memory: memory, logPath: logPath, extra: extra}
	for _, p := range []*string{&n.addr, &n.http} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("bench: a port for the node: %w", err)
		}
		defer ln.Close() // both at the end, or the second could be the first
		*p = ln.Addr().String()
	}
	return n, nil
}

// start starts the process and returns when it serves, and how long that took.
func (n *childNode) start(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("bench: the node's log: %w", err)
	}
	defer log.Close()
	args := append([]string{"node", "-devices", strings.Join(n.devices, ","), "-listen", n.addr, "-http", n.http,
		"-memory", strconv.FormatInt(n.memory, 10)}, n.extra...)
	n.cmd = exec.Command(n.binary, args...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	// The terminal's Ctrl-C is ours, and if we are killed the node goes too.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	n.exited = make(chan struct{})
	started := make(chan error)
	go n.run(started)
	if err := <-started; err != nil {
		<-n.exited
		n.exited = nil // there is no process to end
		return 0, fmt.Errorf("bench: starting the node: %w", err)
	}
	if err := n.awaitHealth(ctx); err != nil {
		n.kill()
		return 0, err
	}
	return time.Since(begin), nil
}

// run starts the process and waits for its end on one thread: the process dies
// with the thread that started it.
func (n *childNode) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := n.cmd.Start()
	started <- err
	if err == nil {
		n.err = n.cmd.Wait()
	}
	close(n.exited)
}

const (
	healthPoll    = 5 * time.Millisecond
	healthTimeout = time.Minute
)

// awaitHealth waits until the node serves.
func (n *childNode) awaitHealth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for {
		err := n.get(ctx, "/healthz", nil)
		if err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("bench: the node ended (%v) instead of serving; its log, %s, says: %s", n.err, n.logPath, lastLine(n.logPath))
		case <-ctx.Done():
			return fmt.Errorf("bench: the node serves not: %w: %w", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// get asks the node's HTTP server, and decodes the JSON that it answers into v.
func (n *childNode) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("bench: %s: %s", path, resp.Status)
	}
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("bench: %s: %w", path, err)
	}
	return nil
}

// recovery returns how long the slowest device's recovery took.
func (n *childNode) recovery(ctx context.Context) (time.Duration, error) {
	var s node.Status
	if err := n.get(ctx, "/status", &s); err != nil {
		return 0, err
	}
	slowest := 0.0
	for _, l := range s.Lanes {
		slowest = max(slowest, l.RecoveryS)
	}
	return time.Duration(slowest * float64(time.Second)), nil
}

// kill ends the process as a crash would, and waits until it is gone.
func (n *childNode) kill() {
	n.cmd.Process.Kill()
	<-n.exited
}

const stopTimeout = 30 * time.Second

// stop ends the process cleanly. One that has ended already is an error.
func (n *childNode) stop() error {
	select {
	case <-n.exited:
		return fmt.Errorf("bench: the node had ended already (%v); its log, %s, says: %s", n.err, n.logPath, lastLine(n.logPath))
	default:
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("bench: stopping the node: %w", err)
	}
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-n.exited:
	case <-t.C:
		n.kill()
		return fmt.Errorf("bench: the node did not end within %v of SIGTERM; its log is %s", stopTimeout, n.logPath)
	}
	if n.err != nil {
		return fmt.Errorf("bench: the node ended with %w; its log, %s, says: %s", n.err, n.logPath, lastLine(n.logPath))
	}
	return nil
}

// end makes sure that nothing is left running.
func (n *childNode) end() {
	if n.exited == nil {
		return
	}
	select {
	case <-n.exited:
	default:
		if err := n.stop(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			n.kill()
		}
	}
}

// lastLine returns the last line of a file, for an error to quote.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	s := strings.TrimSpace(string(b))
	return s[strings.LastIndexByte(s, '\n')+1:]
}
