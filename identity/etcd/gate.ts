/** Stands before a gRPC service: an answer, a push or a refusal leaves only after what it rests on is safe; else the caller is told to ask again. */
import { Metadata, ResponderBuilder, ServerInterceptingCall, type ServerInterceptor, status } from '@grpc/grpc-js';
import { asError } from '../../src/base/errors.ts';

export function gate(durable: () => Promise<void>): ServerInterceptor {
  return (_method, call) => {
    const unavailable = (thrown: unknown) => ({
      code: status.UNAVAILABLE,
      details: asError(thrown).message,
      metadata: new Metadata(),
    });
    const responder = new ResponderBuilder()
      .withSendMessage((message, next) => {
        durable().then(
          () => next(message),
          (thrown: unknown) => call.sendStatus(unavailable(thrown)),
        );
      })
      .withSendStatus((end, next) => {
        // that a call ended well says nothing that its messages did not say
        if (end.code === status.OK) next(end);
        else
          durable().then(
            () => next(end),
            (thrown: unknown) => next(unavailable(thrown)),
          );
      })
      .build();
    return new ServerInterceptingCall(call, responder);
  };
}
