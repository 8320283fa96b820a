package main

import (
	"context"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/logger"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func newJWTSource(ctx context.Context, socket string) (*workloadapi.JWTSource, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket), workloadapi.WithLogger(logger.Writer(os.Stderr))))
}

// fetchJWT [audience…] fetches a JWT-SVID and lets go-spiffe judge it by the bundles that the source holds.
func fetchJWT(ctx context.Context, socket string, args []string) error {
	source, err := newJWTSource(ctx, socket)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: args[0], ExtraAudiences: args[1:]})
	if err != nil {
		return err
	}
	judged, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, args[:1])
	if err != nil {
		return err
	}
	bundle, err := source.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString(svid.ID.TrustDomain().Name()))
	if err != nil {
		return err
	}
	say(map[string]any{
		"id":       judged.ID.String(),
		"audience": judged.Audience,
		"expiry":   judged.Expiry.Format(time.RFC3339),
		"token":    svid.Marshal(),
		"keys":     len(bundle.JWTAuthorities()),
	})
	return nil
}

// checkJWT [token] [audience] asks twice: go-spiffe by the bundles it holds, and the agent by ValidateJWTSVID.
func checkJWT(ctx context.Context, socket string, args []string) error {
	source, err := newJWTSource(ctx, socket)
	if err != nil {
		return err
	}
	defer source.Close()
	said := map[string]any{}
	if svid, err := jwtsvid.ParseAndValidate(args[0], source, []string{args[1]}); err != nil {
		said["here"] = "refused"
	} else {
		said["here"] = svid.ID.String()
	}
	if svid, err := workloadapi.ValidateJWTSVID(ctx, args[0], args[1], workloadapi.WithAddr(socket)); err != nil {
		said["agent"] = "refused"
	} else {
		said["agent"] = svid.ID.String()
	}
	say(said)
	return nil
}
