package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// What schedulers gossip, besides what memberlist says itself, has two forms: a
// member's meta data, which is the host:port of its Scheduler service in the first
// line, and in the second when it started, nanoseconds since 1970, decimal (later
// releases may write more lines); and statements of denied nodes, a version
// byte with nothing or more of
//
//	1 byte   1 denied, 0 allowed
//	8 bytes  when, nanoseconds since 1970, big endian
//	1 byte   length of the peer ID
//	         the peer ID

const (
	// wireVersion leads statements.
	wireVersion = 1
	// maxAddress bounds the address of a Scheduler service: a DNS name and a port.
	maxAddress = 255 + 6
	statement  = 1 + 8 + 1 // bytes of a statement without its ID
)

// encodeStatements is the wire form of statements, MaxStatements at most.
func encodeStatements(statements []identity.Statement) []byte {
	statements = statements[:min(len(statements), identity.MaxStatements)]
	out := make([]byte, 1, 1+len(statements)*(statement+52))
	out[0] = wireVersion
	for _, s := range statements {
		if len(s.ID) > 255 {
			continue
		}
		flag := byte(0)
		if s.Denied {
			flag = 1
		}
		out = append(out, flag)
		out = binary.BigEndian.AppendUint64(out, uint64(s.At.UnixNano()))
		out = append(out, byte(len(s.ID)))
		out = append(out, s.ID...)
	}
	return out
}

// decodeStatements reads what encodeStatements wrote. It bounds what it makes; who
// believes a statement checks it.
func decodeStatements(b []byte) ([]identity.Statement, error) {
	if len(b) == 0 || b[0] != wireVersion {
		return nil, errors.New("statements of an unknown version")
	}
	b = b[1:]
	var out []identity.Statement
	for len(b) > 0 {
		if len(out) == identity.MaxStatements {
			return nil, fmt.Errorf("more than %d statements", identity.MaxStatements)
		}
		if len(b) < statement {
			return nil, errors.New("statements are cut off")
		}
		flag, at, length := b[0], int64(binary.BigEndian.Uint64(b[1:9])), int(b[9])
		b = b[statement:]
		if flag > 1 || len(b) < length {
			return nil, errors.New("statements are damaged")
		}
		out = append(out, identity.Statement{ID: string(b[:length]), Denied: flag == 1, At: time.Unix(0, at).UTC()})
		b = b[length:]
	}
	return out, nil
}

// encodeMeta is a member's meta data.
func encodeMeta(address string, started int64) []byte {
	return fmt.Appendf(nil, "%s\n%d\n", address, started)
}

// decodeMeta reads what encodeMeta wrote.
func decodeMeta(meta []byte) (address string, started int64, err error) {
	lines := strings.SplitN(string(meta), "\n", 3)
	if len(lines) < 2 {
		return "", 0, errors.New("it does not say when it started")
	}
	if started, err = strconv.ParseInt(lines[1], 10, 64); err != nil || started < 0 || started == math.MaxInt64 {
		return "", 0, fmt.Errorf("it started at %q, which is no time", lines[1])
	}
	return lines[0], started, CheckAddress(lines[0])
}

// CheckAddress says what is wrong with the address at which others are to reach a
// scheduler.
func CheckAddress(address string) error {
	if len(address) > maxAddress {
		return fmt.Errorf("an address of %d bytes, at most %d are understood", len(address), maxAddress)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q is no host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	if strings.Trim(host, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-_:%") != "" {
		return fmt.Errorf("%q names no host", address)
	}
	if ip := net.ParseIP(host); ip != nil && (ip.IsUnspecified() || ip.IsMulticast()) {
		return fmt.Errorf("%q is no address of one machine", address)
	}
	return nil
}
