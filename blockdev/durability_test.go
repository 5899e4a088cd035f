package blockdev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sysfs builds the files of a sysfs that names a disk 259:0 with one partition
// 259:1, as the kernel lays them out: /sys/dev/block is full of links.
func sysfs(t *testing.T, cache, fua string) string {
	t.Helper()
	root := t.TempDir()
	disk := filepath.Join(root, "devices/pci0/nvme0n1")
	put := func(path, content string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if cache != "" {
		put(filepath.Join(disk, "queue/write_cache"), cache+"\n")
	}
	if fua != "" {
		put(filepath.Join(disk, "queue/fua"), fua+"\n")
	}
	put(filepath.Join(disk, "nvme0n1p1/partition"), "1\n")
	links := filepath.Join(root, "dev/block")
	if err := os.MkdirAll(links, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"259:0": disk, "259:1": filepath.Join(disk, "nvme0n1p1")} {
		if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestChooseDurability(t *testing.T) {
	block := func(major, minor uint32) *unix.Stat_t {
		return &unix.Stat_t{Mode: unix.S_IFBLK | 0o600, Rdev: unix.Mkdev(major, minor)}
	}
	for _, test := range []struct {
		name       string
		st         *unix.Stat_t
		cache, fua string
		want       string
		why        string
	}{
		{"a file", &unix.Stat_t{Mode: unix.S_IFREG}, "write back", "0", "fua", "a file"},
		{"a loop device", block(loopMajor, 3), "write back", "0", "fua", "loop device"},
		{"no cache", block(259, 0), "write through", "0", "fua", "write through"},
		{"a cache and FUA", block(259, 0), "write back", "1", "fua", "has FUA"},
		{"a cache and no FUA", block(259, 0), "write back", "0", "flush", "no FUA"},
		{"a partition asks its disk", block(259, 1), "write back", "0", "flush", "no FUA"},
		{"a kernel that doesn't say about FUA", block(259, 0), "write back", "", "flush", "no FUA"},
		{"a kernel that says nothing", block(259, 0), "", "", "fua", "unknown"},
		{"a device that sysfs doesn't know", block(8, 0), "write back", "0", "fua", "unknown"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, why := chooseMode(test.st, sysfs(t, test.cache, test.fua))
			if m.String() != test.want || !strings.Contains(why, test.why) {
				t.Errorf("%v (%s), want %s because of %q", m, why, test.want, test.why)
			}
		})
	}
}
