package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// The lies, as --lie names them.
const (
	wrongBytes  = "wrong-bytes"
	missing     = "missing"
	trickle     = "trickle"
	hang        = "hang"
	forgedChain = "forged-chain"
)

// When the lying begins, as --begin names it.
const (
	now   = "now"
	whole = "whole"
	told  = "told"
)

// What is claimed, as --claim names it.
const (
	claimPieces = "pieces"
	claimSealed = "sealed"
)

// options is what a rogue does that a node does not.
type options struct {
	lie, begin, claim, want string
	seed                    bool
	blobs                   []string
	subjects                []subject // blobs, parsed
}

// subject is a blob that the rogue pulls or claims. Registry and repository say where
// it is pulled from.
type subject struct {
	digest               blob.Digest
	layout               blob.Layout
	registry, repository string
}

func (o *options) bind(flags *pflag.FlagSet) {
	flags.StringVar(&o.lie, "lie", wrongBytes, "how it misbehaves: "+wrongBytes+" (a flipped bit in each chunk), "+
		missing+" (NOT_FOUND for what it said it has), "+trickle+" (a byte a second), "+hang+" (accepts a Read and never answers), "+
		forgedChain+" (with --claim: links that do not lead to the digest, and bytes that fit them)")
	flags.StringVar(&o.begin, "begin", now, "when it begins to: "+now+", "+whole+" (of each blob, once it holds all of it), "+told+" (at POST /begin)")
	flags.StringVar(&o.claim, "claim", "", "hold nothing, and claim to hold what --blob names: all of its "+claimPieces+", or the blob "+claimSealed+
		". Pieces that are sent are invented")
	flags.StringVar(&o.want, "want", "", "hold nothing, want what --blob names before others do, and: "+wantSilent+" (take leases and do nothing), "+
		wantForge+" (say that all of it is here, with random links), "+wantAccuse+" (blame the source of each lease), "+
		wantHoard+" (claim slots and keep each lease), "+wantFlood+" (say all that the stream takes)")
	flags.BoolVar(&o.seed, "seed", false, "be a seed; the join token must be a seed's")
	flags.StringArrayVar(&o.blobs, "blob", nil, "DIGEST,SIZE[,REGISTRY,REPOSITORY] of a blob to pull through its own mirror, or to claim; may be repeated")
}

// check errs with what is wrong, and parses the blobs.
func (o *options) check() error {
	errs := []error{
		oneOf("lie", o.lie, wrongBytes, missing, trickle, hang, forgedChain),
		oneOf("begin", o.begin, now, whole, told),
		oneOf("claim", o.claim, "", claimPieces, claimSealed),
		oneOf("want", o.want, "", wantSilent, wantForge, wantAccuse, wantHoard, wantFlood),
	}
	for _, text := range o.blobs {
		s, err := parseSubject(text)
		if err == nil && o.claim == "" && s.repository == "" {
			err = fmt.Errorf("--blob %s: registry and repository are missing; name them, or set --claim", text)
		}
		o.subjects = append(o.subjects, s)
		errs = append(errs, err)
	}
	switch {
	case o.want != "" && (o.claim != "" || len(o.blobs) == 0):
		errs = append(errs, errors.New("--want needs a blob to want, and no --claim; name one by --blob"))
	case o.claim == "" && o.lie == forgedChain:
		errs = append(errs, errors.New("--lie "+forgedChain+" is of a blob that it does not hold; set --claim"))
	case o.claim != "" && len(o.blobs) == 0:
		errs = append(errs, errors.New("--claim needs a blob to claim; name it by --blob"))
	case o.claim != "" && o.begin == whole:
		errs = append(errs, errors.New("what is claimed is never whole here; use --begin "+now+" or "+told))
	}
	return errors.Join(errs...)
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("--%s %q: want one of %q", flag, value, allowed)
}

func parseSubject(text string) (subject, error) {
	parts := strings.Split(text, ",")
	if len(parts) != 2 && len(parts) != 4 {
		return subject{}, fmt.Errorf("--blob %q: want DIGEST,SIZE or DIGEST,SIZE,REGISTRY,REPOSITORY", text)
	}
	var s subject
	var err error
	if s.digest, err = blob.ParseDigest(parts[0]); err != nil {
		return subject{}, fmt.Errorf("--blob %q: %w", text, err)
	}
	size, err := strconv.ParseInt(parts[1], 10, 64)
	if err == nil {
		s.layout, err = blob.NewLayout(size)
	}
	if err != nil {
		return subject{}, fmt.Errorf("--blob %q: size: %w", text, err)
	}
	if len(parts) == 4 {
		s.registry, s.repository = parts[2], parts[3]
	}
	return s, nil
}
