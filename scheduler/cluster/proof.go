package cluster

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"time"
)

// Who accepts a connection sends challengeBytes of chance, and who opened it answers
// with their HMAC under the schedulers' key. So a stranger is known before it has taken
// anything, and a connection that was recorded is worth nothing when it is played again.
const (
	challengeBytes = 32
	// proofLabel sets this use of the key apart from others.
	proofLabel = "damselfly gossip stream 1"
)

var errNoProof = errors.New("it has not the key of this cluster's schedulers")

// demand has the other end show the key.
func demand(conn net.Conn, key []byte) error {
	challenge := make([]byte, challengeBytes)
	_, _ = rand.Read(challenge) // never fails, see crypto/rand
	if err := conn.SetDeadline(time.Now().Add(streamLimit)); err != nil {
		return err
	}
	if _, err := conn.Write(challenge); err != nil {
		return err
	}
	proof := make([]byte, sha256.Size)
	if _, err := io.ReadFull(conn, proof); err != nil {
		return err
	}
	if !hmac.Equal(proof, proofOf(key, challenge)) {
		return errNoProof
	}
	return conn.SetDeadline(time.Time{})
}

// prove shows the key to the other end, until ctx's deadline.
func prove(ctx context.Context, conn net.Conn, key []byte) error {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	challenge := make([]byte, challengeBytes)
	if _, err := io.ReadFull(conn, challenge); err != nil {
		return err
	}
	if _, err := conn.Write(proofOf(key, challenge)); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

func proofOf(key, challenge []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(proofLabel))
	mac.Write(challenge)
	return mac.Sum(nil)
}
