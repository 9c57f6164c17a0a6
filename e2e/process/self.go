package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"
)

// Machine says on what figures were measured: cores, memory, kernel, Go.
func Machine() string {
	var u unix.Utsname
	var i unix.Sysinfo_t
	if unix.Uname(&u) != nil || unix.Sysinfo(&i) != nil {
		return "unknown"
	}
	return fmt.Sprintf("%d cores, %d GiB of memory, Linux %s %s, %s", runtime.NumCPU(), i.Totalram*uint64(i.Unit)>>30,
		unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.Version())
}

// ProfileSelf writes a CPU profile of this process to a file, until stop. "" does
// nothing.
func ProfileSelf(file string) (stop func() error, err error) {
	if file == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}
