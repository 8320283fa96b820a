/**
 * The points between two effects on the kernel. A process may die at any of them: what stands then must be closed for every
 * endpoint that is enforced, and the next start must find its way from there. The tests that kill it there hang on this hook.
 */

/** Called after each effect with what has just been done. */
export type OnStep = (step: string) => void;

export const noStep: OnStep = () => {};
